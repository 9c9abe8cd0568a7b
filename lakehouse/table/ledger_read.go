package table

import (
	"errors"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"

	"sonde/schema"
)

// ReadSequence calls f with the facts of a ledger file that say anything about one
// sequence of an engine: those of its number, and those of its epoch that name no
// sequence. Row groups without any are passed over by a look at three columns,
// so that one sequence of a large ledger is found without decoding all of it.
func ReadSequence(r io.ReaderAt, size int64, epoch, number uint64, f func(*Fact) error) error {
	match := func(t *Fact) bool {
		return t.Epoch == epoch && (t.Row.Number == number || !namesSequence(t.Row.Fact) || t.Row.Hook != "")
	}
	holds := func(file *parquet.File, rg parquet.RowGroup) (bool, error) { return holdsSequence(file, rg, number) }
	return readStructs(r, size, &Query{Epoch: &epoch}, "epoch", (*factColumns).row, match, f, holds)
}

// namesSequence reports whether facts of a kind are about the sequence of their
// number, unless they have a hook: then they are about rows of a refused message.
func namesSequence(fact string) bool {
	switch fact {
	case schema.FactExpected, schema.FactMissing, schema.FactDropped, schema.FactAmend:
		return true
	}
	return false
}

// holdsSequence reports whether a row group may have a fact that ReadSequence wants.
func holdsSequence(file *parquet.File, rg parquet.RowGroup, number uint64) (bool, error) {
	for _, c := range []struct {
		name   string
		wanted func(v parquet.Value) bool
	}{
		{"number", func(v parquet.Value) bool { return uint64(v.Int64()) == number }},
		{"fact", func(v parquet.Value) bool { return !namesSequence(string(v.ByteArray())) }},
		{"hook", func(v parquet.Value) bool { return len(v.ByteArray()) > 0 }},
	} {
		column, ok := file.Schema().Lookup(c.name)
		if !ok {
			return true, nil // whoever reads the rows will say what is wrong
		}
		if found, err := anyValue(rg.ColumnChunks()[column.ColumnIndex], c.wanted); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

// anyValue reports whether a column chunk has a value that is wanted. Of a page
// with a dictionary that is asked instead: it is the same for all pages of a chunk,
// and a value that no row uses only costs time.
func anyValue(c parquet.ColumnChunk, wanted func(parquet.Value) bool) (found bool, err error) {
	pages := c.Pages()
	defer pages.Close() // was only read
	var asked parquet.Dictionary
	for {
		page, err := pages.ReadPage()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read a page: %w", err)
		}
		if d := page.Dictionary(); d == nil {
			found, err = anyOf(page.Values(), wanted)
		} else if d != asked {
			asked = d
			for i := int32(0); i < int32(d.Len()) && !found; i++ {
				found = wanted(d.Index(i))
			}
		}
		parquet.Release(page)
		if found || err != nil {
			return found, err
		}
	}
}

func anyOf(values parquet.ValueReader, wanted func(parquet.Value) bool) (bool, error) {
	buf := make([]parquet.Value, 1024)
	for {
		n, err := values.ReadValues(buf)
		for _, v := range buf[:n] {
			if wanted(v) {
				return true, nil
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("read values: %w", err)
		case n == 0:
			return false, io.ErrNoProgress
		}
	}
}
