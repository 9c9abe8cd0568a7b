package ring2

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// child runs a test of this binary as another process, which the test kills. Each
// line that it prints is sent on lines.
type child struct {
	cmd   *exec.Cmd
	lines chan string
}

const childRole = "RING2_CHILD"

func startChild(t *testing.T, role string, env ...string) *child {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChildProcess$")
	cmd.Env = append(append(os.Environ(), childRole+"="+role), env...)
	return startCommand(t, cmd)
}

func startCommand(t *testing.T, cmd *exec.Cmd) *child {
	t.Helper()
	c := &child{cmd: cmd, lines: make(chan string, 1<<16)}
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	go func() {
		defer close(c.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.lines <- s.Text()
		}
	}()
	return c
}

// kill ends the child with SIGKILL and waits for its end.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended by itself
	_ = c.cmd.Wait()
}

func (c *child) line(t *testing.T) string {
	t.Helper()
	select {
	case s, ok := <-c.lines:
		if !ok {
			t.Fatal("the child ended")
		}
		return s
	case <-time.After(20 * time.Second):
		t.Fatal("the child says nothing")
	}
	return ""
}

// TestChildProcess is what the other process runs.
func TestChildProcess(t *testing.T) {
	switch os.Getenv(childRole) {
	case "engine":
		childEngine(t)
	case "agent":
		childAgent(t)
	}
}

// childEngine captures until it is killed. Every eighth copy never ends.
func childEngine(t *testing.T) {
	w, err := NewWriter(WriterOptions{Socket: os.Getenv("SOCKET"), StateDir: os.Getenv("STATE"), DescCount: 256,
		DataBytes: minDataBytes, Mode: Complete, StepStallBudget: 100 * time.Millisecond, CopyTimeout: time.Hour,
		Logger: silent})
	if err != nil {
		t.Fatal(err)
	}
	ranges, layouts := smallStep(t, w)
	for n := 0; ; n++ {
		s := begin(t, w, ranges, layouts)
		if s.Captured(0) {
			write(s, 0, ranges)
			if n%512 == 500 {
				s.Detach(0)
			}
		}
		s.Commit()
		ranges[0].Position += ranges[0].Count
		if n%100 == 99 {
			fmt.Println("step", n)
		}
	}
}

func TestAnEngineKilledAtAnyMomentLosesOnlyWhatItNamed(t *testing.T) {
	rng := seeded(t)
	for range 6 {
		o := listen(t, ListenerOptions{})
		state := t.TempDir()
		engine := startChild(t, "engine", "SOCKET="+o.path, "STATE="+state)
		s := accept(t, o.l)
		c := newChecker(t, s)
		seen := map[uint64]Record{} // control records
		nap := time.Duration(rng.IntN(120)) * time.Millisecond
		go func() {
			time.Sleep(nap)
			engine.kill()
		}()
		err := readUntilDeath(c, s, seen)
		if !errors.Is(err, io.EOF) {
			t.Fatalf("read until the engine's death: %v", err)
		}
		lost := uint64(0)
		for _, seq := range s.Lost() {
			if !slices.ContainsFunc(mapValues(c.steps), func(st *Step) bool {
				return slices.ContainsFunc(st.Layouts, func(l StepLayout) bool { return l.CaptureSeq == seq })
			}) {
				continue // a control record that was being put
			}
			lost += 7
		}
		dropped := uint64(0)
		for _, n := range c.dropped {
			dropped += n
		}
		if c.committed+lost+dropped+c.aborted != c.expected {
			t.Errorf("expected %d rows; read %d, lost %d, dropped %d", c.expected, c.committed, lost, dropped)
		}
		if got := s.Producer(); got.Closing || got.CapturedRows < c.expected {
			t.Errorf("the dead writer's counters %+v; its records say %d rows", got, c.expected)
		}
		epoch := s.Config().Epoch
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		checkObituaries(t, o, state, epoch, seen)
	}
}

func mapValues(m map[uint64]*Step) []*Step {
	var out []*Step
	for _, s := range m {
		out = append(out, s)
	}
	return out
}

func readUntilDeath(c *checker, s *Session, seen map[uint64]Record) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var records []Record
	for {
		var err error
		records, err = s.Next(ctx, records[:0])
		for _, seq := range s.Lost() {
			c.holes[seq] = true
		}
		for i := range records {
			r := records[i]
			c.record(&r)
			if r.Kind != KindCapture {
				r.Payload = slices.Clone(r.Payload)
				seen[r.Seq] = r
			}
			if r.Seq%3 == 0 {
				s.Release(r.Seq)
			}
		}
		if err != nil {
			return err
		}
	}
}

// obituaries reads the journal of a dead epoch from its successor.
func obituaries(t *testing.T, s *Session, epoch uint64) []Obituary {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var out []Obituary
	for {
		records, err := s.Next(ctx, nil)
		if err != nil {
			t.Fatalf("read obituaries after %d: %v", len(out), err)
		}
		for i := range records {
			if records[i].Kind == KindObituary {
				o, err := ParseObituary(records[i].Payload)
				if err != nil {
					t.Fatal(err)
				}
				o.Payload = slices.Clone(o.Payload)
				if o.DeadEpoch == epoch {
					out = append(out, o)
				}
			}
			s.Release(records[i].Seq + 1)
		}
		if n := len(out); n > 0 && out[n-1].Kind == KindEndOfJournal {
			return out
		}
	}
}

// checkObituaries starts a successor and compares what it tells with what was
// read from the dead engine's ring.
func checkObituaries(t *testing.T, o *opened, state string, epoch uint64, seen map[uint64]Record) {
	t.Helper()
	w := newTestWriter(t, WriterOptions{Socket: o.path, StateDir: state, DescCount: 256, DataBytes: 1 << 20})
	s := accept(t, o.l)
	told := obituaries(t, s, epoch)
	unseen, last := 0, uint64(0)
	for _, d := range told[:len(told)-1] {
		if d.Flags == ObituaryNeverPut {
			continue
		}
		if last > 0 && d.Seq <= last {
			t.Errorf("obituary of record %d after %d", d.Seq, last)
		}
		last = d.Seq
		r, ok := seen[d.Seq]
		if !ok {
			unseen++
		} else if r.Kind != d.Kind || string(r.Payload) != string(d.Payload) {
			t.Errorf("obituary of record %d, %s, differs from the record, %s", d.Seq, d.Kind, r.Kind)
		}
		delete(seen, d.Seq)
	}
	if unseen > 1 {
		t.Errorf("%d records were journalled and never in the ring; at most the last one can be", unseen)
	}
	for seq := range seen {
		if seq > told[0].Seq {
			t.Errorf("record %d, %s, has no obituary", seq, seen[seq].Kind)
		}
	}
	if end := told[len(told)-1]; end.Seq <= last {
		t.Errorf("the journal ends at %d, after record %d", end.Seq, last)
	}
	eventually(t, "the told journal is removed", func() bool {
		_, err := os.Stat(filepath.Join(state, journalName(0, epoch)))
		return errors.Is(err, os.ErrNotExist)
	})
	if w.Stats().ObituariesSent != uint64(len(told)) {
		t.Errorf("told %d; the writer counted %d", len(told), w.Stats().ObituariesSent)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		closeSoon(t, w)
	}()
	newChecker(t, s).drain(s, true)
	<-closed
	if left, err := os.ReadDir(state); err != nil || len(left) > 0 {
		t.Errorf("after a clean end the state folder holds %v (%v)", left, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// childAgent reads and releases until it is killed, and says how far it came.
func childAgent(t *testing.T) {
	l, err := Listen(os.Getenv("SOCKET"), ListenerOptions{Logger: silent})
	if err != nil {
		t.Fatal(err)
	}
	s := accept(t, l)
	c := newChecker(t, s)
	fmt.Println("start", s.ReleaseSeq())
	for {
		records, err := s.Next(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range records {
			c.record(&records[i])
		}
		s.Release(records[len(records)-1].Seq + 1)
		fmt.Println("released", s.ReleaseSeq())
	}
}

func TestAnAgentKilledAtAnyMomentIsFollowedWithoutAGap(t *testing.T) {
	rng := seeded(t)
	socket := filepath.Join(t.TempDir(), "agent.sock")
	w := newTestWriter(t, WriterOptions{Socket: socket, DescCount: 256, DataBytes: minDataBytes, Mode: Complete,
		StepStallBudget: 20 * time.Second})
	ranges, layouts := smallStep(t, w)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			s, err := w.BeginStep(ranges, layouts)
			if err != nil {
				t.Error(err)
				return
			}
			write(s, 0, ranges)
			s.Commit()
			ranges[0].Position += ranges[0].Count
		}
	}()
	released := uint64(0)
	for range 4 {
		agent := startChild(t, "agent", "SOCKET="+socket)
		var start uint64
		if _, err := fmt.Sscanf(agent.line(t), "start %d", &start); err != nil || start < released {
			t.Fatalf("an agent starts at %d; %d was released (%v)", start, released, err)
		}
		for range 1 + rng.IntN(20) {
			agent.line(t)
		}
		agent.kill()
		for line := range agent.lines {
			if _, err := fmt.Sscanf(line, "released %d", &released); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
	}
	l, err := Listen(socket, ListenerOptions{Logger: silent})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	s := accept(t, l)
	if s.ReleaseSeq() < released {
		t.Errorf("the last agent starts at %d; %d was released", s.ReleaseSeq(), released)
	}
	c := newChecker(t, s)
	start := s.ReleaseSeq()
	go func() {
		close(stop)
		<-done
		closeSoon(t, w)
	}()
	c.drain(s, true)
	got := w.Stats()
	if got.DroppedRows != [ReasonCount]uint64{} || c.next != got.Claim || start > c.next {
		t.Errorf("dropped %v; the last agent read %d to %d of %d", got.DroppedRows, start, c.next, got.Claim)
	}
	if got.Attaches != 5 || got.RefusedReleases != 0 {
		t.Errorf("%+v", got)
	}
}
