package recording

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sonde/ring2"
)

// Recording is a folder of recorded sessions.
type Recording struct {
	Dir      string
	Sessions []*Session // in the order in which they attached
}

// Session describes one recorded session.
type Session struct {
	Dir      string
	Start    Start
	End      End // of ReasonTorn when the recorder died
	Segments int
	Bytes    int64
	Torn     int64                 // bytes of a frame that was not written to its end
	Records  map[ring2.Kind]uint64 // by kind, as far as they are part of the recording
	Payload  int64                 // bytes of their payloads
	Lost     uint64                // records that the engine had claimed and never committed
	Left     uint64                // records behind the last step boundary, which are not part of the recording
	First    uint64                // capture times of the first and the last record, CLOCK_MONOTONIC of the engine
	Last     uint64
}

// Total is the number of records.
func (s *Session) Total() uint64 {
	var n uint64
	for _, k := range s.Records {
		n += k
	}
	return n
}

// Wall turns a capture time into wall-clock time.
func (s *Session) Wall(captureNS uint64) time.Time {
	return time.Unix(0, int64(captureNS+s.Start.Ring.WallMinusMonoNS))
}

// Open reads a recording to its end and checks every byte, so that a damaged one
// is refused as a whole: with ErrCorrupt, or with ErrVersion when a newer program
// wrote it. A session whose recorder died is accepted up to its last whole step.
func Open(dir string) (*Recording, error) {
	folders, err := sessionFolders(dir)
	if err != nil {
		return nil, fmt.Errorf("open recording: %w", err)
	}
	if len(folders) == 0 {
		return nil, fmt.Errorf("open recording: %s holds no session; record one with sonde record", dir)
	}
	r := &Recording{Dir: dir}
	for _, folder := range folders {
		s, err := survey(folder)
		if errors.Is(err, ErrCorrupt) {
			return nil, fmt.Errorf("open recording: %w; no session is replayed: take a whole copy, or move session %s out of %s",
				err, filepath.Base(folder), dir)
		}
		if err != nil {
			return nil, fmt.Errorf("open recording: %w", err)
		}
		r.Sessions = append(r.Sessions, s)
	}
	slices.SortStableFunc(r.Sessions, func(a, b *Session) int {
		return cmp.Compare(a.Start.AttachedNS, b.Start.AttachedNS)
	})
	return r, nil
}

// survey reads one session to its end.
func survey(dir string) (s *Session, err error) {
	p, err := openPlayback(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.scan.close()) }()
	s = &Session{Dir: dir, Start: p.start, Segments: len(p.scan.paths), Records: map[ring2.Kind]uint64{}}
	if s.Bytes, err = sizeOf(p.scan.paths); err != nil {
		return nil, err
	}
	var step []brief // the last STEP and its CAPTUREs, which may not be part of the recording
	for {
		rec, err := p.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if rec.Kind != ring2.KindCapture {
			s.add(step)
			step = step[:0]
		}
		step = append(step, brief{rec.Seq, rec.Kind, int64(len(rec.Payload)), rec.CaptureNS})
	}
	s.Torn, s.Lost, s.End = p.scan.torn, uint64(len(p.lost)), p.end
	if !p.ended {
		s.End = End{Reason: ReasonTorn, Until: p.boundary}
	}
	if s.End.Until-s.Start.Release > p.highest()-s.Start.Release || len(step) > 0 && int64(step[0].seq-s.End.Until) > 0 {
		return nil, p.scan.corrupt("it ends before record %d, which is not inside its last step or behind it", s.End.Until)
	}
	for i := range step {
		if int64(step[i].seq-s.End.Until) >= 0 {
			s.Left = uint64(len(step) - i)
			step = step[:i]
			break
		}
	}
	s.add(step)
	return s, nil
}

// brief is what the survey keeps of a record for a while.
type brief struct {
	seq       uint64
	kind      ring2.Kind
	payload   int64
	captureNS uint64
}

func (s *Session) add(records []brief) {
	for _, r := range records {
		if s.Total() == 0 {
			s.First = r.captureNS
		}
		s.Records[r.kind]++
		s.Payload += r.payload
		s.Last = r.captureNS
	}
}

func sizeOf(paths []string) (n int64, err error) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		n += info.Size()
	}
	return n, nil
}
