package materializer

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"sonde/lakehouse/commitlog"
	"sonde/lakehouse/table"
	"sonde/schema"
)

// lookup asks the table itself which rows it has, where no state remembers them.
// It reads the key columns of the row groups that may hold them.
type lookup struct {
	lake  string
	log   *commitlog.Log
	files map[uint64][]commitlog.File // by epoch, since the last commit
}

func newLookup(lake string, log *commitlog.Log) *lookup {
	return &lookup{lake: lake, log: log, files: map[uint64][]commitlog.File{}}
}

func (l *lookup) filesOf(epoch uint64) ([]commitlog.File, error) {
	files, ok := l.files[epoch]
	if !ok {
		var err error
		if files, err = l.log.FilesOf(epochText(epoch)); err != nil {
			return nil, fmt.Errorf("look up epoch %016x: %w", epoch, err)
		}
		l.files[epoch] = files
	}
	return files, nil
}

// inTable tells whether the table may have rows of an epoch.
func (l *lookup) inTable(epoch uint64) (bool, error) {
	files, err := l.filesOf(epoch)
	return len(files) > 0, err
}

// committed makes the next look-up see the files of the last commit.
func (l *lookup) committed() { clear(l.files) }

// stored lists the rows of a message that the table has.
func (l *lookup) stored(m *table.Message) (map[schema.Cursor]bool, error) {
	key := m.Header.Chain()
	files, err := l.filesOf(key.Epoch)
	if err != nil {
		return nil, err
	}
	found := make(map[schema.Cursor]bool, m.Len()) // of the message's rows: false until the table has one
	for _, s := range m.Header.Spans {
		for k := range s.Rows {
			found[schema.Cursor{Seq: s.Seq, Row: s.First + k}] = false
		}
	}
	q := table.Query{Seq: &table.SeqRange{First: m.Header.First().Seq, Last: m.Header.Last().Seq}}
	for _, f := range files {
		if f.Table != string(m.Table()) {
			continue
		}
		path := filepath.Join(l.lake, filepath.FromSlash(f.Path))
		err := readFile(path, func(r io.ReaderAt) error { return readKeys(r, f.Bytes, m.Table(), q, key, found) })
		if err != nil {
			return nil, fmt.Errorf("look up chain %s in %s: %w", key, path, err)
		}
	}
	return found, nil
}

func readFile(path string, read func(io.ReaderAt) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // was only read
	return read(f)
}

// readKeys notes which of the rows that are asked for are in one file.
func readKeys(r io.ReaderAt, size int64, name table.Name, q table.Query, key schema.ChainKey,
	found map[schema.Cursor]bool) error {
	add := func(k schema.ChainKey, seq uint64, row uint32) {
		at := schema.Cursor{Seq: seq, Row: row}
		if _, asked := found[at]; asked && k == key {
			found[at] = true
		}
	}
	place := func(o *table.Origin, p *table.Place) {
		add(schema.ChainKey{Epoch: o.Epoch, Kind: key.Kind, Tenant: o.Tenant, Hook: p.Hook, Layer: p.Layer,
			Shard: p.Shard}, p.Seq, p.Row)
	}
	hookless := func(o *table.Origin) schema.ChainKey {
		return schema.ChainKey{Epoch: o.Epoch, Kind: key.Kind, Tenant: o.Tenant, Hook: schema.Hookless, Layer: -1}
	}
	switch name {
	case table.Vectors:
		q.Epoch, q.Hook, q.Layer = &key.Epoch, key.Hook, &key.Layer
		return table.ReadVectors(r, size, &q, true, func(v *table.Vector) error { place(&v.Origin, &v.Place); return nil })
	case table.Tokens:
		q.Epoch = &key.Epoch
		return table.ReadTokens(r, size, &q, func(t *table.Token) error { place(&t.Origin, &t.Place); return nil })
	case table.VectorStats:
		q.Epoch, q.Hook, q.Layer = &key.Epoch, key.Hook, &key.Layer
		return table.ReadStats(r, size, &q, func(s *table.Stats) error { place(&s.Origin, &s.Place); return nil })
	case table.Requests:
		q.Epoch = &key.Epoch
		return table.ReadRequests(r, size, &q, func(e *table.RequestEvent) error {
			add(hookless(&e.Origin), e.Row.Seq, e.Row.Row)
			return nil
		})
	case table.Ledger:
		q.Epoch = &key.Epoch
		return table.ReadLedger(r, size, &q, func(f *table.Fact) error {
			k := hookless(&f.Origin)
			k.Hook, k.Layer, k.Shard = f.ChainHook, f.ChainLayer, f.ChainShard
			add(k, f.Row.Seq, f.Row.Row)
			return nil
		})
	case table.Detections: // their column for a query's epoch is that of the engine
		return table.ReadDetections(r, size, &q, func(d *table.Detection) error {
			add(hookless(&d.Origin), d.Row.Seq, d.Row.Row)
			return nil
		})
	}
	panic(fmt.Sprintf("BUG: unknown table %q", name))
}
