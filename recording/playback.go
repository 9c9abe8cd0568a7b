package recording

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"sonde/ring2"
)

// playback turns the frames of a session into its records, and checks what a ring
// and a session promise to an agent.
type playback struct {
	scan     *scan
	start    Start
	snapshot []ring2.Record
	lost     []uint64
	seq      uint64 // of the next record
	boundary uint64 // the last step boundary
	stepEnd  uint64 // behind the last capture of the step being read
	step     ring2.Step
	end      End
	ended    bool
}

func openPlayback(dir string) (*playback, error) {
	s, err := openScan(dir)
	if err != nil {
		return nil, err
	}
	p := &playback{scan: s}
	if err := p.open(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return p, nil
}

// open reads what a session begins with.
func (p *playback) open() error {
	f, err := p.scan.next()
	if errors.Is(err, io.EOF) || err == nil && f.typ != frameSession {
		err = p.scan.corrupt("it does not begin with the description of a session")
	}
	if err != nil {
		return err
	}
	if err := parseJSON(f.body, &p.start); err != nil {
		return p.scan.corrupt("description of the session: %v", err)
	}
	ring, id := &p.start.Ring, &p.scan.identity
	if err := ring.check(); err != nil {
		return p.scan.corrupt("%v", err)
	}
	if ring.Epoch != id.epoch || ring.Rank != id.rank || ring.EngineInstance != id.engine ||
		uint64(p.start.AttachedNS) != id.identity {
		return p.scan.corrupt("header and description of the session differ")
	}
	p.seq, p.boundary, p.stepEnd = p.start.Release, p.start.Release, p.start.Release
	return p.readSnapshot()
}

func (p *playback) readSnapshot() error {
	if p.start.Snapshot < 0 || p.start.Snapshot > maxSnapshotItems {
		return p.scan.corrupt("snapshot of %d records; at most %d", p.start.Snapshot, maxSnapshotItems)
	}
	bytes := 0
	for range p.start.Snapshot {
		f, err := p.scan.next()
		if errors.Is(err, io.EOF) || err == nil && f.typ != frameSnapshot {
			err = p.scan.corrupt("its snapshot is not complete")
		}
		if err != nil {
			return err
		}
		r, err := parseRecord(f.body)
		if bytes += len(r.Payload); err == nil && bytes > maxSnapshotBytes {
			err = fmt.Errorf("more than %d bytes", maxSnapshotBytes)
		}
		if err != nil {
			return p.scan.corrupt("snapshot: %v", err)
		}
		p.snapshot = append(p.snapshot, r)
	}
	return nil
}

// next returns the next record. After io.EOF, end is set, when there is one.
func (p *playback) next() (ring2.Record, error) {
	for {
		f, err := p.scan.next()
		if err != nil {
			return ring2.Record{}, err
		}
		switch f.typ {
		case frameRecord:
			r, err := parseRecord(f.body)
			if err == nil {
				err = p.take(&r)
			}
			if err != nil {
				return r, p.scan.corrupt("%v", err)
			}
			return r, nil
		case frameLost:
			if err := p.addLost(f.body); err != nil {
				return ring2.Record{}, err
			}
		case frameEnd:
			if err := parseJSON(f.body, &p.end); err != nil {
				return ring2.Record{}, p.scan.corrupt("end of the session: %v", err)
			}
			p.ended = true
		default:
			return ring2.Record{}, p.scan.corrupt("frame of type %d, which does not exist", f.typ)
		}
	}
}

// take checks that a record follows the one before, but for lost ones, and finds
// the step boundaries.
func (p *playback) take(r *ring2.Record) error {
	if r.Seq != p.seq && !p.isLost(p.seq, r.Seq) {
		return fmt.Errorf("record %d follows record %d", r.Seq, p.seq-1)
	}
	if uint64(len(r.Payload)) > p.start.Ring.DataBytes {
		return fmt.Errorf("record %d has %d bytes; its ring has %d", r.Seq, len(r.Payload), p.start.Ring.DataBytes)
	}
	p.seq = r.Seq + 1
	if r.Kind == ring2.KindStep && !r.Aborted() {
		p.stepEnd = p.seq
		// A payload that does not parse announces nothing: whoever expands it says
		// what is wrong.
		if ring2.ParseStepInto(&p.step, r.Payload) == nil {
			for _, l := range p.step.Layouts {
				if l.Outcome == ring2.ReasonNone && l.CaptureSeq-r.Seq < p.start.Ring.DescCount {
					p.stepEnd = max(p.stepEnd, l.CaptureSeq+1)
				}
			}
		}
	}
	if p.seq >= p.stepEnd {
		p.boundary = p.seq
	}
	return nil
}

// isLost says whether all sequence numbers from one to before another were lost.
// The list ascends, so that two of its places tell.
func (p *playback) isLost(from, to uint64) bool {
	n := to - from
	i, found := slices.BinarySearch(p.lost, from)
	return found && n <= uint64(len(p.lost)-i) && p.lost[i+int(n)-1] == to-1
}

// highest is one past the last record, lost ones included.
func (p *playback) highest() uint64 {
	if n := len(p.lost); n > 0 {
		return max(p.seq, p.lost[n-1]+1)
	}
	return p.seq
}

// addLost takes the sequence numbers of a frame.
func (p *playback) addLost(b []byte) error {
	if len(b)%8 != 0 || len(p.lost)+len(b)/8 > maxDescCount {
		return p.scan.corrupt("%d bytes of lost records", len(b))
	}
	for ; len(b) > 0; b = b[8:] {
		seq := order.Uint64(b)
		if n := len(p.lost); n > 0 && p.lost[n-1] >= seq {
			return p.scan.corrupt("lost record %d follows lost record %d", seq, p.lost[n-1])
		}
		p.lost = append(p.lost, seq)
	}
	return nil
}
