package ring2

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
)

// The journal of an epoch is a folder of segments. Each control record is
// appended with one plain write before it goes into the ring: that outlives a
// SIGKILL of this process, and needs no fsync, because after a crash of the
// machine the ring and its reader are gone, too. A segment starts with what was
// alive when it began, so that older ones can go once the reader has released
// all that they tell of.
//
// A segment is a header, and records of a header and a payload:
//
//	"R2JL", u32 version 1, u64 epoch, u32 rank, u32 crc32c of the 20 bytes
//	u32 payload bytes, u32 crc32c of all that follows, u64 ordinal, u64 seq, u16 kind, u16 flags, payload
//
// A record that is appended twice has the same ordinal twice: first flagged
// ObituaryNeverPut, then, once it is in the ring, without the flag.
const (
	journalMagic        = "R2JL"
	journalVersion      = 1
	journalHeaderBytes  = 24
	journalRecordHeader = 28
)

// Bounds of the journal.
const (
	segmentBytes    = 4 << 20   // then a new segment begins, but not before it is twice what is alive
	maxJournalBytes = 256 << 20 // of an epoch; then records are counted and not journalled
	maxDeadJournals = 64        // of earlier epochs; the oldest are removed untold
)

// journal is owned by whoever holds the writer's lock. A nil journal takes
// nothing.
type journal struct {
	dir     string
	lock    *os.File // the folder, locked while we live
	epoch   uint64
	rank    uint32
	file    *os.File // current segment; nil after a failed write
	number  int      // of the current segment
	size    uint64   // of the current segment
	old     []segment
	bytes   uint64 // of all segments
	unnamed uint64 // records that were not taken
	last    uint64 // ordinal
	buf     []byte
}

// segment is one that is complete.
type segment struct {
	path  string
	bytes uint64
	// need is what the reader must have released before the segment may go. It
	// is known once nothing that the segment tells of waits for room any more.
	need  uint64
	known bool
}

func segmentPath(dir string, number int) string {
	return filepath.Join(dir, fmt.Sprintf("%08d", number))
}

// ordinal names the next record of the journal.
func (j *journal) ordinal() uint64 {
	if j == nil {
		return 0
	}
	j.last++
	return j.last
}

// append writes one record. What cannot be written is counted: the journal never
// stands in the way of the engine.
func (j *journal) append(ordinal, seq uint64, kind Kind, flags uint16, payload []byte) {
	if j == nil {
		return
	}
	n := uint64(journalRecordHeader + len(payload))
	if j.file == nil || j.bytes+n > maxJournalBytes {
		j.unnamed++
		return
	}
	j.buf = appendJournalRecord(j.buf[:0], ordinal, seq, kind, flags, payload)
	if _, err := j.file.Write(j.buf); err != nil {
		j.unnamed++
		// What was written of the record must go, or nothing after it could be read.
		if err := j.file.Truncate(int64(j.size)); err != nil {
			j.seal(0, false)
		}
		return
	}
	j.size += n
	j.bytes += n
}

func appendJournalRecord(b []byte, ordinal, seq uint64, kind Kind, flags uint16, payload []byte) []byte {
	start := len(b)
	b = order.AppendUint32(b, uint32(len(payload)))
	b = order.AppendUint32(b, 0)
	b = order.AppendUint64(b, ordinal)
	b = order.AppendUint64(b, seq)
	b = order.AppendUint16(b, uint16(kind))
	b = order.AppendUint16(b, flags)
	b = append(b, payload...)
	order.PutUint32(b[start+4:], crc32.Checksum(b[start+8:], castagnoli))
	return b
}

func appendJournalHeader(b []byte, epoch uint64, rank uint32) []byte {
	start := len(b)
	b = append(b, journalMagic...)
	b = order.AppendUint32(b, journalVersion)
	b = order.AppendUint64(b, epoch)
	b = order.AppendUint32(b, rank)
	return order.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// full says that a new segment should begin.
func (j *journal) full(aliveBytes int) bool {
	return j != nil && (j.file == nil || j.size >= segmentBytes && j.size >= 2*uint64(aliveBytes))
}

// nextSegment makes the file of the next segment with what is alive in it. It may
// run without the lock: it touches nothing that append does.
func (j *journal) nextSegment(alive []*aliveRecord) (*os.File, uint64, error) {
	f, err := os.OpenFile(segmentPath(j.dir, j.number+1), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, fmt.Errorf("begin journal segment: %w", err)
	}
	var b bytes.Buffer
	b.Write(appendJournalHeader(nil, j.epoch, j.rank))
	var scratch []byte
	for _, r := range alive {
		scratch = appendJournalRecord(scratch[:0], r.ordinal, r.seq, r.kind, 0, r.payload)
		b.Write(scratch)
	}
	n, err := f.Write(b.Bytes())
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("begin journal segment: %w", err), f.Close(), os.Remove(f.Name()))
	}
	return f, uint64(n), nil
}

// begin makes a segment the current one.
func (j *journal) begin(f *os.File, size uint64) {
	j.seal(0, false)
	j.file, j.size = f, size
	j.number++
	j.bytes += size
}

// seal ends the current segment.
func (j *journal) seal(need uint64, known bool) {
	if j.file == nil {
		return
	}
	// What close could report was reported by write: nothing is fsynced.
	_ = j.file.Close()
	j.old = append(j.old, segment{path: j.file.Name(), bytes: j.size, need: need, known: known})
	j.file, j.size = nil, 0
}

// settle notes that nothing waits for room, so that releasing the claim releases
// all that old segments tell of, and returns the segments that may go.
func (j *journal) settle(empty bool, release, claim uint64) []string {
	if j == nil {
		return nil
	}
	var gone []string
	for i := range j.old {
		if s := &j.old[i]; empty && !s.known {
			s.need, s.known = claim, true
		}
	}
	for len(j.old) > 0 && j.old[0].known && claim-j.old[0].need >= claim-release {
		gone = append(gone, j.old[0].path)
		j.bytes -= j.old[0].bytes
		j.old = j.old[1:]
	}
	return gone
}

// close ends the journal. It is removed when the reader has seen everything.
func (j *journal) close(remove bool) error {
	if j == nil {
		return nil
	}
	j.seal(0, false)
	var err error
	if remove {
		err = removeJournal(j.dir)
	}
	return errors.Join(err, j.lock.Close())
}

func removeJournal(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove journal: %w", err)
	}
	return nil
}
