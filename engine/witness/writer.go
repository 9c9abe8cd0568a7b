package witness

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"sonde/engine/model"
	"sonde/ring2"
)

var (
	order      = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

const (
	suffix      = ".witness"
	magic       = "SONDEWIT"
	version     = 1
	recordBytes = 8 // length and CRC
	hashBytes   = 16
)

// Writer writes the file of one epoch. It has one caller.
type Writer struct {
	file   *os.File
	hooks  []model.Hook
	buf    []byte // the record being built
	wanted int    // hashes that the step still lacks
}

// Create makes the file of an epoch, and the folder. hooks are those whose rows
// will be witnessed, in this order.
func Create(dir string, epoch uint64, hooks []model.Hook) (*Writer, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the witness folder: %w", err)
	}
	name := filepath.Join(dir, fmt.Sprintf("%016x%s", epoch, suffix))
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("make the witness of epoch %016x: %w", epoch, err)
	}
	w := &Writer{file: f, hooks: hooks}
	w.start()
	w.buf = append(w.buf, magic...)
	w.buf = order.AppendUint32(w.buf, version)
	w.buf = order.AppendUint64(w.buf, epoch)
	w.buf = order.AppendUint32(w.buf, uint32(len(hooks)))
	for i := range hooks {
		w.text(hooks[i].Name)
		w.buf = order.AppendUint32(w.buf, uint32(int32(hooks[i].Layer)))
		w.buf = append(w.buf, byte(hooks[i].Select))
	}
	if err := w.flush(); err != nil {
		return nil, err
	}
	return w, nil
}

// Step starts a step. Then follow its rows: for each hook, in the order of
// Create, for each range, each token's row; of a hook of ring2.SelectSampled
// only the last row of ranges with Logits.
func (w *Writer) Step(ranges []model.Range) {
	w.start()
	w.buf = order.AppendUint32(w.buf, uint32(len(ranges)))
	all, sampled := 0, 0
	for i := range ranges {
		r := &ranges[i]
		w.text(r.Request)
		last := byte(0)
		if r.Logits != nil {
			last = 1
			sampled++
		}
		all += len(r.Tokens)
		for _, v := range [...]int{r.Sample, r.Pass, r.Position, len(r.Tokens)} {
			w.buf = order.AppendUint32(w.buf, uint32(v))
		}
		w.buf = append(w.buf, last)
	}
	for i := range w.hooks {
		w.wanted += rowsOf(w.hooks[i].Select, all, sampled)
	}
}

func rowsOf(s ring2.RowSelect, all, sampled int) int {
	if s == ring2.SelectSampled {
		return sampled
	}
	return all
}

// Row witnesses the next row.
func (w *Writer) Row(row []byte) {
	sum := sha256.Sum256(row)
	w.buf = append(w.buf, sum[:hashBytes]...)
	w.wanted--
}

// End writes the step.
func (w *Writer) End() error {
	if w.wanted != 0 {
		panic(fmt.Sprintf("BUG: a step was witnessed with %d rows too few", w.wanted))
	}
	return w.flush()
}

// Close closes the file.
func (w *Writer) Close() error { return w.file.Close() }

func (w *Writer) start() { w.buf, w.wanted = append(w.buf[:0], make([]byte, recordBytes)...), 0 }

func (w *Writer) text(s string) {
	w.buf = order.AppendUint32(w.buf, uint32(len(s)))
	w.buf = append(w.buf, s...)
}

func (w *Writer) flush() error {
	payload := w.buf[recordBytes:]
	order.PutUint32(w.buf, uint32(len(payload)))
	order.PutUint32(w.buf[4:], crc32.Checksum(payload, castagnoli))
	if _, err := w.file.Write(w.buf); err != nil {
		return fmt.Errorf("write the witness: %w", err)
	}
	return nil
}
