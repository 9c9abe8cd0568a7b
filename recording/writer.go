package recording

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync/atomic"

	"sonde/ring2"
)

// Bounds of a writer.
const (
	defaultSegmentBytes = 256 << 20
	minSegmentBytes     = 64 << 10
	writeBuffer         = 1 << 20
	maxSegments         = 1 << 20 // of a session; then the recording is full
	maxDetailBytes      = 1024
	endReserve          = 8 << 10 // each session keeps so much of the bound free, to be closed in a full recording
)

// ErrFull: the recording reached its bound. What was synced before is kept.
var ErrFull = errors.New("recording has reached its bound: raise the bound or choose another folder")

// Options configures the writing of a recording. Zero numbers mean the defaults in
// brackets.
type Options struct {
	Recorder     string // program and version, for people
	SegmentBytes int64  // a segment that has so many bytes is closed; at least 64 KiB [256 MiB]
	MaxBytes     int64  // of all sessions in the folder; then recording ends, and what is there is kept [64 GiB]

	create func(path string) (file, error) // tests
}

// file is what a writer needs of an *os.File opened for appending.
type file interface {
	Write(b []byte) (int, error)
	Sync() error
	Truncate(size int64) error
	Close() error
}

func createFile(path string) (file, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o640)
}

// budget is the bytes that the sessions of a recording may still take together.
type budget struct{ left atomic.Int64 }

func (b *budget) take(n int64) bool {
	if b.left.Add(-n) >= 0 {
		return true
	}
	b.left.Add(n)
	return false
}

// Writer records one session. It is owned by one goroutine. After an error, only
// Finish may be called.
type Writer struct {
	dir    string
	o      Options
	budget *budget
	header segmentHeader // of the current segment
	f      file
	buf    []byte
	size   int64 // of the current segment, with what is in buf
	frames uint64
	total  int64
	lost   int // sequence numbers recorded as lost
	err    error

	// At the last sync, which is where a failed recording goes back to.
	syncedSize   int64
	syncedFrames uint64
}

// newWriter makes the folder of a session with its first segment. It appears
// under its name once that is synced, so that every session has its beginning.
func newWriter(dir string, start Start, snapshot []ring2.Record, o Options, b *budget) (*Writer, error) {
	final, err := sessionFolder(dir, &start)
	if err == nil && !b.take(endReserve) {
		err = ErrFull
	}
	if err != nil {
		return nil, fmt.Errorf("begin recording: %w", err)
	}
	w := &Writer{dir: final + newSuffix, o: o, budget: b, buf: make([]byte, 0, writeBuffer),
		header: segmentHeader{epoch: start.Ring.Epoch, identity: uint64(start.AttachedNS), rank: start.Ring.Rank,
			engine: start.Ring.EngineInstance}}
	start.Snapshot = len(snapshot)
	if err := w.begin(encodeJSON(start), snapshot, final); err != nil {
		if w.f != nil {
			_ = w.f.Close() // The first error says more.
		}
		_ = os.RemoveAll(w.dir)
		b.left.Add(endReserve + w.total)
		return nil, fmt.Errorf("begin recording: %w", err)
	}
	return w, nil
}

func (w *Writer) begin(start []byte, snapshot []ring2.Record, final string) error {
	if err := os.Mkdir(w.dir, 0o750); err != nil {
		return err
	}
	f, err := w.openSegment(w.header)
	if err != nil {
		return err
	}
	w.f = f
	if w.frame(frameSession, start, nil); w.err == nil {
		for i := range snapshot {
			w.record(frameSnapshot, &snapshot[i])
		}
	}
	if err := w.Sync(); err != nil {
		return err
	}
	if err := os.Rename(w.dir, final); err != nil {
		return err
	}
	w.dir = final
	return syncFolder(filepath.Dir(final))
}

// openSegment makes a segment's file with its header.
func (w *Writer) openSegment(h segmentHeader) (file, error) {
	if h.index >= maxSegments || !w.budget.take(segmentHeaderBytes) {
		return nil, ErrFull
	}
	path := segmentPath(w.dir, h.index)
	f, err := w.o.create(path)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(appendSegmentHeader(nil, h)); err == nil {
		if err = f.Sync(); err == nil {
			err = syncFolder(w.dir)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	w.header, w.size, w.syncedSize = h, segmentHeaderBytes, segmentHeaderBytes
	w.total += segmentHeaderBytes
	return f, nil
}

// Append records what Next returned, in its order. Payloads are copied at once.
// Nothing is safe before Sync.
func (w *Writer) Append(records []ring2.Record) error {
	for i := range records {
		w.record(frameRecord, &records[i])
	}
	return w.err
}

// Lost records sequence numbers, in addition to earlier ones, that the engine had
// claimed and never committed when it died. It comes before the records that
// follow them.
func (w *Writer) Lost(seqs []uint64) error {
	for len(seqs) > 0 {
		n := min(len(seqs), maxLostFrame)
		body := make([]byte, 0, 8*n)
		for _, seq := range seqs[:n] {
			body = order.AppendUint64(body, seq)
		}
		w.frame(frameLost, body, nil)
		w.lost += n
		seqs = seqs[n:]
	}
	return w.err
}

func (w *Writer) record(typ uint8, r *ring2.Record) {
	var head [recordHeaderBytes]byte
	w.frame(typ, appendRecordHeader(head[:0], r), r.Payload)
}

// frame appends one frame whose body is head and payload. The payload may change
// while it is read: the checksum is that of the copy.
func (w *Writer) frame(typ uint8, head, payload []byte) {
	if w.err != nil {
		return
	}
	n := int64(frameHeaderBytes+len(head)+frameTrailerBytes) + int64(len(payload))
	if w.size > segmentHeaderBytes && w.size+n > w.o.SegmentBytes && typ != frameEnd {
		if w.err = w.rotate(); w.err != nil {
			return
		}
	}
	if typ != frameEnd && !w.budget.take(n) {
		w.err = ErrFull
		return
	}
	var header [frameHeaderBytes]byte
	sum := w.put(0, appendFrameHeader(header[:0], frameHeader{length: uint32(len(head) + len(payload)), typ: typ,
		ordinal: w.frames}))
	sum = w.put(w.put(sum, head), payload)
	w.put(0, order.AppendUint32(nil, sum))
	w.frames++
	w.size += n
	w.total += n
}

// put copies bytes into the buffer, writes full buffers, and continues a checksum.
func (w *Writer) put(sum uint32, b []byte) uint32 {
	for len(b) > 0 && w.err == nil {
		if len(w.buf) == cap(w.buf) {
			w.flush()
		}
		from := len(w.buf)
		n := min(len(b), cap(w.buf)-from)
		w.buf = append(w.buf, b[:n]...)
		sum = crc32.Update(sum, castagnoli, w.buf[from:])
		b = b[n:]
	}
	return sum
}

func (w *Writer) flush() {
	if w.err == nil && len(w.buf) > 0 {
		_, w.err = w.f.Write(w.buf)
		w.buf = w.buf[:0]
	}
}

// rotate begins the next segment once the current one is safe.
func (w *Writer) rotate() error {
	if err := w.Sync(); err != nil {
		return err
	}
	h := w.header
	h.index, h.ordinal = h.index+1, w.frames
	f, err := w.openSegment(h)
	if err != nil {
		return err
	}
	err = w.f.Close()
	w.f = f
	return err
}

// Sync makes everything that was appended safe on the disk.
func (w *Writer) Sync() error {
	w.flush()
	if w.err == nil {
		w.err = w.f.Sync()
	}
	if w.err != nil {
		return w.err
	}
	w.syncedSize, w.syncedFrames = w.size, w.frames
	return nil
}

// Bytes is the size of the session so far.
func (w *Writer) Bytes() int64 { return w.total }

// Finish closes the session. A recording that failed goes back to its last sync,
// which makes room on a full disk, and ends there.
func (w *Writer) Finish(e End) error {
	failed := w.err
	if w.err != nil {
		if w.err = w.f.Truncate(w.syncedSize); w.err == nil {
			w.budget.left.Add(w.size - w.syncedSize)
			w.total -= w.size - w.syncedSize
			w.buf, w.size, w.frames = w.buf[:0], w.syncedSize, w.syncedFrames
		}
	}
	before := w.total
	e.Detail = e.Detail[:min(len(e.Detail), maxDetailBytes)]
	w.frame(frameEnd, encodeJSON(e), nil)
	w.flush()
	if w.err == nil {
		w.err = w.f.Sync()
	}
	w.budget.left.Add(endReserve - (w.total - before))
	err := errors.Join(w.err, w.f.Close())
	if failed == nil {
		failed = err
	}
	w.err = errors.New("recording is finished")
	if failed != nil {
		return fmt.Errorf("write %s: %w", segmentPath(w.dir, w.header.index), failed)
	}
	return nil
}
