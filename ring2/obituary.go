package ring2

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// deadQueue tells the journals of writers that died, one after the other. The
// background goroutine of the writer owns it. A nil queue is empty.
type deadQueue struct {
	log   *slog.Logger
	dead  []*deadJournal // not told to the end, oldest first
	told  []*deadJournal // told, but not released
	next  []Obituary     // read ahead
	alive []string       // folders of writers that were not dead when last tried
}

// deadJournal is the journal of a dead epoch.
type deadJournal struct {
	dir      string
	lock     *os.File
	epoch    uint64
	segments []string
	endSeq   uint64 // in our ring, of the record that ends it

	opened  bool
	begun   bool // its first obituary is in our ring
	at      int  // segment
	file    *os.File
	r       *bufio.Reader
	voided  map[uint64]bool // ordinals of flagged records that got into the ring after all
	sent    map[uint64]bool // ordinals of flagged records that were told
	any     bool            // lastSeq is known
	lastSeq uint64          // told last, of records that were in the ring
	endsAt  uint64          // one past the last record or capture
	ended   bool
}

// openState opens the state folder of a rank: it starts the journal of an epoch
// and takes over those of epochs whose writers are dead.
func openState(dir string, rank int, epoch uint64, log *slog.Logger) (*journal, *deadQueue, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make state folder: %w", err)
	}
	q := &deadQueue{log: log}
	if err := q.collect(dir, rank); err != nil {
		q.close()
		return nil, nil, err
	}
	j := &journal{dir: filepath.Join(dir, journalName(rank, epoch)), epoch: epoch, rank: uint32(rank)}
	err := os.Mkdir(j.dir, 0o700)
	if err == nil {
		j.lock, err = lockFolder(j.dir)
	}
	if err == nil {
		var f *os.File
		var size uint64
		if f, size, err = j.nextSegment(nil); err == nil {
			j.begin(f, size)
			return j, q, nil
		}
		_ = j.lock.Close()
	}
	q.close()
	return nil, nil, fmt.Errorf("begin journal %s: %w", j.dir, err)
}

func journalName(rank int, epoch uint64) string { return fmt.Sprintf("rank%d-%016x", rank, epoch) }

// errAlive marks a folder whose writer lives.
var errAlive = errors.New("its writer is alive")

// lockFolder locks a journal for as long as the process lives and keeps the file
// open.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, errAlive
	}
	return f, nil
}

// collect finds the journals of dead writers of this rank, oldest first.
func (q *deadQueue) collect(dir string, rank int) error {
	folders, err := list(dir, fmt.Sprintf("rank%d-", rank))
	if err != nil {
		return err
	}
	age := map[string]int64{}
	for _, f := range folders {
		if info, err := os.Stat(f); err == nil {
			age[f] = info.ModTime().UnixNano()
		}
	}
	slices.SortFunc(folders, func(a, b string) int {
		if age[a] != age[b] {
			return int(max(-1, min(1, age[a]-age[b])))
		}
		return strings.Compare(a, b)
	})
	q.alive = folders
	return q.takeOver()
}

// list gives the paths in a folder whose names begin with a prefix, sorted.
func list(dir, prefix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list state folder: %w", err)
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

// takeOver locks the folders of writers that are dead by now. One that is being
// killed may let go of its socket before it lets go of its lock.
func (q *deadQueue) takeOver() error {
	if q == nil {
		return nil
	}
	folders := q.alive
	q.alive = nil
	for i, f := range folders {
		lock, err := lockFolder(f)
		switch {
		case errors.Is(err, errAlive):
			q.alive = append(q.alive, f)
			continue
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			q.alive = append(q.alive, folders[i:]...)
			return fmt.Errorf("open journal of an earlier writer: %w", err)
		}
		d := &deadJournal{dir: f, lock: lock}
		if d.segments, err = list(f, ""); err != nil {
			q.log.Warn("journal of a dead writer cannot be read", "error", err)
		}
		q.dead = append(q.dead, d)
	}
	for len(q.dead) > maxDeadJournals {
		// The first one may be half told.
		oldest := q.dead[1]
		q.log.Warn("too many journals of dead writers; an old one is removed untold", "journal", oldest.dir)
		q.remove(oldest)
		q.dead = slices.Delete(q.dead, 1, 2)
	}
	return nil
}

func (q *deadQueue) remove(d *deadJournal) {
	d.closeFile()
	if err := removeJournal(d.dir); err != nil {
		q.log.Warn("journal of a dead writer stays and will be told again", "error", err)
	}
	_ = d.lock.Close() // nothing was written through it
}

// close leaves what was not told or not released to the next writer.
func (q *deadQueue) close() {
	if q == nil {
		return
	}
	for _, d := range slices.Concat(q.dead, q.told) {
		d.closeFile()
		_ = d.lock.Close() // nothing was written through it
	}
}

// ahead reads up to n obituaries ahead and says whether there are any.
func (q *deadQueue) ahead(n int) bool {
	if q == nil {
		return false
	}
	for len(q.next) < n && len(q.dead) > 0 {
		d := q.dead[0]
		if d.ended {
			break // the next journal comes when the end of this one is in the ring
		}
		o, ok := d.read(q.log)
		if !ok {
			q.remove(d) // nothing in it can be read
			q.dead = q.dead[1:]
			continue
		}
		q.next = append(q.next, o)
	}
	return len(q.next) > 0
}

// sent notes that the first obituary was put into the ring, or passed over.
func (q *deadQueue) sent(seq uint64) {
	if q.next[0].Kind == KindEndOfJournal {
		d := q.dead[0]
		d.endSeq = seq
		q.dead, q.told = q.dead[1:], append(q.told, d)
	}
	q.next = q.next[1:]
}

// retell begins anew with every journal whose end was not released: the reader
// before may have got only a part of it to the bus, and what it knew is gone.
func (q *deadQueue) retell() {
	if q == nil {
		return
	}
	q.dead = append(q.told, q.dead...)
	q.told, q.next = nil, nil
	for _, d := range q.dead {
		d.closeFile()
		d.opened, d.begun, d.any, d.ended, d.at, d.endsAt = false, false, false, false, 0, 0
	}
}

// released removes the journals that the reader is done with.
func (q *deadQueue) released(release, claim uint64) {
	if q == nil {
		return
	}
	for len(q.told) > 0 && released(q.told[0].endSeq, release, claim) {
		q.remove(q.told[0])
		q.told = q.told[1:]
	}
}

// read returns the next obituary, the last one of kind KindEndOfJournal. ok is
// false when the journal does not even say its epoch.
func (d *deadJournal) read(log *slog.Logger) (Obituary, bool) {
	if !d.opened {
		d.opened = true
		d.survey(log)
	}
	if d.epoch == 0 {
		return Obituary{}, false
	}
	for {
		r, ok := d.nextRecord(log)
		if !ok {
			d.ended = true
			return Obituary{DeadEpoch: d.epoch, Seq: d.endsAt, Kind: KindEndOfJournal}, true
		}
		if r.flags&ObituaryNeverPut != 0 {
			if d.voided[r.ordinal] || d.sent[r.ordinal] {
				continue
			}
			d.sent[r.ordinal] = true
		} else {
			if d.any && int64(r.seq-d.lastSeq) <= 0 {
				continue // told already, by an older segment
			}
			d.any, d.lastSeq = true, r.seq
		}
		return Obituary{DeadEpoch: d.epoch, Seq: r.seq, Kind: r.kind, Flags: r.flags, Payload: r.payload}, true
	}
}

// survey reads the journal once for what must be known before it is told.
func (d *deadJournal) survey(log *slog.Logger) {
	d.voided, d.sent = map[uint64]bool{}, map[uint64]bool{}
	flagged := map[uint64]bool{}
	for {
		r, ok := d.nextRecord(log)
		if !ok {
			break
		}
		if r.flags&ObituaryNeverPut != 0 {
			flagged[r.ordinal] = true
			continue
		}
		if flagged[r.ordinal] {
			d.voided[r.ordinal] = true
		}
		end := r.seq + 1
		if r.kind == KindStep {
			end = stepEnd(r.payload, r.seq, maxDescCount)
		}
		if d.endsAt == 0 || int64(end-d.endsAt) > 0 {
			d.endsAt = end
		}
	}
	d.closeFile()
	d.at = 0
}

// journalRecord is one record of a journal.
type journalRecord struct {
	ordinal, seq uint64
	kind         Kind
	flags        uint16
	payload      []byte
}

// nextRecord reads the next record of any segment. A segment ends at the first
// byte that makes no sense: the writer died while it wrote.
func (d *deadJournal) nextRecord(log *slog.Logger) (journalRecord, bool) {
	for {
		if d.file == nil {
			if d.at == len(d.segments) {
				return journalRecord{}, false
			}
			if err := d.openSegment(d.segments[d.at]); err != nil {
				log.Warn("segment of a dead writer's journal cannot be read", "error", err)
				d.closeFile()
				d.at++
				continue
			}
		}
		r, err := readJournalRecord(d.r)
		if err == nil {
			return r, true
		}
		if !errors.Is(err, io.EOF) {
			log.Warn("journal of a dead writer ends in the middle of a record", "segment", d.segments[d.at], "error", err)
		}
		d.closeFile()
		d.at++
	}
}

func (d *deadJournal) closeFile() {
	if d.file != nil {
		_ = d.file.Close() // it was only read
		d.file = nil
	}
}

func (d *deadJournal) openSegment(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	d.file, d.r = f, bufio.NewReaderSize(f, 1<<16)
	epoch, err := readJournalHeader(d.r)
	if err != nil {
		return fmt.Errorf("read header of %s: %w", path, err)
	}
	if d.epoch != 0 && d.epoch != epoch {
		return fmt.Errorf("read header of %s: epoch %016x in the journal of %016x", path, epoch, d.epoch)
	}
	d.epoch = epoch
	return nil
}

// readJournalHeader reads what a segment begins with.
func readJournalHeader(r io.Reader) (epoch uint64, err error) {
	var h [journalHeaderBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, err
	}
	p := payload{b: h[4:]}
	version, epoch := p.u32(), p.u64()
	p.u32()
	if sum := p.u32(); string(h[:4]) != journalMagic || version != journalVersion || epoch == 0 ||
		sum != crc32.Checksum(h[:journalHeaderBytes-4], castagnoli) {
		return 0, fmt.Errorf("not a journal of version %d", journalVersion)
	}
	return epoch, nil
}

// readJournalRecord reads one record. io.EOF is the regular end.
func readJournalRecord(r io.Reader) (journalRecord, error) {
	var h [journalRecordHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return journalRecord{}, err
	}
	p := payload{b: h[:]}
	n, sum := p.u32(), p.u32()
	rec := journalRecord{ordinal: p.u64(), seq: p.u64(), kind: Kind(p.u16()), flags: p.u16()}
	if n > maxJournalPayload {
		return journalRecord{}, fmt.Errorf("record of %d bytes; at most %d", n, maxJournalPayload)
	}
	rec.payload = make([]byte, n)
	if _, err := io.ReadFull(r, rec.payload); err != nil {
		return journalRecord{}, fmt.Errorf("read a payload of %d bytes: %w", n, io.ErrUnexpectedEOF)
	}
	if got := crc32.Update(crc32.Checksum(h[8:], castagnoli), castagnoli, rec.payload); got != sum {
		return journalRecord{}, fmt.Errorf("record %d has checksum %#x and says %#x", rec.ordinal, got, sum)
	}
	return rec, nil
}

// maxJournalPayload is the largest payload of any control record: a STEP or
// MISSING with all its ranges.
const maxJournalPayload = 8 + 2 + MaxStepLayouts*stepLayoutBytes + 4 + MaxStepRanges*missingRangeBytes
