package table

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/metadata"
)

// dictionaryColumn makes the pages of a column whose values repeat: a dictionary,
// and the index of each row in it. Rows are sorted, so most columns are a few runs
// of one value; a value is looked up once a run, not once a row, and so are the
// bounds of the column. It keeps its memory.
type dictionaryColumn[T cmp.Ordered] struct {
	index  map[T]int
	values []byte // PLAIN
	runs   []indexRun
	low    T
	high   T
	plain  func(dst []byte, v T) []byte // as in a page
	bound  func(v T) []byte             // as in statistics
	signed bool                         // the order of the type, for old readers
}

// indexRun is count rows of one value.
type indexRun struct{ index, count int }

func textDictionary() *dictionaryColumn[string] {
	return &dictionaryColumn[string]{index: map[string]int{},
		plain: func(dst []byte, v string) []byte {
			return append(binary.LittleEndian.AppendUint32(dst, uint32(len(v))), v...)
		},
		bound: func(v string) []byte { return append([]byte{}, v...) }} // not nil: an empty text is a bound, too
}

func int32Dictionary() *dictionaryColumn[int32] {
	plain := func(dst []byte, v int32) []byte { return binary.LittleEndian.AppendUint32(dst, uint32(v)) }
	return &dictionaryColumn[int32]{index: map[int32]int{}, plain: plain, signed: true,
		bound: func(v int32) []byte { return plain(nil, v) }}
}

func int64Dictionary() *dictionaryColumn[int64] {
	plain := func(dst []byte, v int64) []byte { return binary.LittleEndian.AppendUint64(dst, uint64(v)) }
	return &dictionaryColumn[int64]{index: map[int64]int{}, plain: plain, signed: true,
		bound: func(v int64) []byte { return plain(nil, v) }}
}

// collect takes the values of all rows of a row group, of which there is at least
// one.
func (d *dictionaryColumn[T]) collect(rows int, at func(i int) T) {
	clear(d.index)
	d.values, d.runs = d.values[:0], d.runs[:0]
	var last T
	for i := range rows {
		v := at(i)
		if i > 0 && v == last {
			d.runs[len(d.runs)-1].count++
			continue
		}
		if i == 0 {
			d.low, d.high = v, v
		}
		d.low, d.high, last = min(d.low, v), max(d.high, v), v
		n, known := d.index[v]
		if !known {
			n = len(d.index)
			d.index[v] = n
			d.values = d.plain(d.values, v)
		}
		d.runs = append(d.runs, indexRun{n, 1})
	}
}

// statistics are the bounds of the column: both, or none when one is too long. A
// reader that finds one may take the other for empty.
func (d *dictionaryColumn[T]) statistics(maxBytes int64) metadata.EncodedStatistics {
	s := metadata.EncodedStatistics{HasNullCount: true, Signed: d.signed}
	if low, high := d.bound(d.low), d.bound(d.high); int64(max(len(low), len(high))) <= maxBytes {
		s.HasMin, s.Min, s.HasMax, s.Max = true, low, true, high
	}
	return s
}

// write writes the collected values as the next column of a file.
func (d *dictionaryColumn[T]) write(f *vectorFile, rows int) error {
	c, err := f.next()
	if err != nil {
		return err
	}
	dictionary := file.NewDictionaryPage(memory.NewBufferBytes(d.values), int32(len(d.index)), parquet.Encodings.Plain)
	_, err = f.pager.WriteDictionaryPage(dictionary)
	dictionary.Release()
	if err != nil {
		return fmt.Errorf("write the dictionary: %w", err)
	}
	indexes := appendIndexes(nil, d.runs, len(d.index))
	var buf bytes.Buffer
	data := page{f.pager.Compress(&buf, indexes), rows, 0, len(indexes)}
	if err := f.dataPage(data, f.props.DictionaryIndexEncoding()); err != nil {
		return err
	}
	c.SetStats(d.statistics(f.props.MaxStatsSizeFor(c.Descr().Path())))
	return f.pager.Close(true, false)
}

// appendIndexes appends the indexes of a data page: their width in bits, then
// Parquet's hybrid of runs, for eight equal indexes and more, and of groups of
// eight that are packed bit by bit.
func appendIndexes(dst []byte, runs []indexRun, values int) []byte {
	width := max(bits.Len(uint(values-1)), 1)
	w := packer{dst: append(dst, byte(width)), width: width}
	for _, r := range runs {
		// A group that was begun must be filled before a run can start.
		for ; r.count > 0 && len(w.open)%8 != 0; r.count-- {
			w.open = append(w.open, r.index)
		}
		if r.count >= 8 {
			w.flush()
			w.dst = binary.AppendUvarint(w.dst, uint64(r.count)<<1)
			for k := 0; k < width; k += 8 {
				w.dst = append(w.dst, byte(r.index>>k))
			}
			continue
		}
		for range r.count {
			w.open = append(w.open, r.index)
		}
	}
	w.flush()
	return w.dst
}

// packer packs what stands in no run.
type packer struct {
	dst   []byte
	width int
	open  []int
}

// flush packs the open indexes; only the last group of a page may be filled up.
func (w *packer) flush() {
	if len(w.open) == 0 {
		return
	}
	for len(w.open)%8 != 0 {
		w.open = append(w.open, 0)
	}
	w.dst = binary.AppendUvarint(w.dst, uint64(len(w.open)/8)<<1|1)
	word, held := uint64(0), 0
	for _, v := range w.open {
		word |= uint64(v) << held
		for held += w.width; held >= 8; held -= 8 {
			w.dst = append(w.dst, byte(word))
			word >>= 8
		}
	}
	w.open = w.open[:0]
}
