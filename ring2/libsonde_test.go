package ring2

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sonde/internal/notrun"
)

// The programs of cuda/test, which speak the protocol in C++.
const (
	libsondeWriter = "writer_peer"
	libsondeReader = "reader_peer"
)

// buildLibsonde builds the peers on libsonde and returns the path of one.
func buildLibsonde(t *testing.T, program string) string {
	t.Helper()
	for _, tool := range [...]string{"g++", "make"} {
		if _, err := exec.LookPath(tool); err != nil {
			notrun.Mark(t, tool+" is not installed")
		}
	}
	if out, err := exec.Command("make", "-j2", "-C", "../cuda", "programs").CombinedOutput(); err != nil {
		t.Fatalf("make -C cuda programs: %v\n%s", err, out)
	}
	path, err := filepath.Abs(filepath.Join("..", "build", "cuda", "plain", program))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// libsondeRun is a peer on libsonde that runs.
type libsondeRun struct {
	command        *exec.Cmd
	stdout, stderr bytes.Buffer
}

func startLibsonde(t *testing.T, program string, args ...string) *libsondeRun {
	t.Helper()
	r := prepareLibsonde(t, program, args...)
	if err := r.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.command.Process.Kill() }) // it may have ended by itself
	return r
}

func prepareLibsonde(t *testing.T, program string, args ...string) *libsondeRun {
	t.Helper()
	r := &libsondeRun{command: exec.CommandContext(t.Context(), buildLibsonde(t, program), args...)}
	r.command.Stdout, r.command.Stderr = &r.stdout, &r.stderr
	return r
}

// result waits for the peer's end and reads what it says.
func (r *libsondeRun) result(t *testing.T, out any) {
	t.Helper()
	if err := r.command.Wait(); err != nil {
		t.Fatalf("peer: %v\n%s", err, r.stderr.String())
	}
	if err := json.Unmarshal(r.stdout.Bytes(), out); err != nil {
		t.Fatalf("peer says %q: %v", r.stdout.String(), err)
	}
}

type libsondeStats struct {
	Steps, Captured, Dropped, ControlFull, Unnamed, Aborted, Attaches, Refused uint64
}

func (s *libsondeStats) UnmarshalJSON(b []byte) error {
	var m map[string]uint64
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*s = libsondeStats{m["steps"], m["captured"], m["dropped"], m["control_full"], m["unnamed"], m["aborted"],
		m["attaches"], m["refused"]}
	return nil
}

// rowsLayout is the layout of cuda/test/rows.h.
var rowsLayout = []LayoutEntry{
	{Hook: "resid_post", Layer: 2, DType: F32, Shape: []uint32{64}, ShardCount: 1},
	{Hook: "odd", Layer: -1, DType: U8, Shape: []uint32{3}, ShardCount: 1},
	{Hook: "logits", Layer: -1, DType: I32, Select: SelectSampled, Shape: []uint32{5}, ShardCount: 1}}

// rowsFill writes the rows of one entry, or checks them: each byte follows from
// the identity of its row, as cuda/test/rows.h says.
func rowsFill(b []byte, ranges []StepRange, entry int, put bool) (wrong int) {
	size, n := rowsLayout[entry].RowBytes(), 0
	for _, r := range ranges {
		first := r.Position
		if rowsLayout[entry].Select == SelectSampled {
			if first = r.Position + r.Count - 1; !r.Sampled {
				continue
			}
		}
		for p := first; p < r.Position+r.Count; p++ {
			for i := range size {
				want := byte(r.Number*131 + uint64(p)*31 + uint64(r.Pass)*7 + uint64(entry)*17 + uint64(i))
				if put {
					b[n] = want
				} else if b[n] != want {
					wrong++
				}
				n++
			}
		}
	}
	return wrong
}

// libsondeSeen collects what an agent reads of a peer, and checks each row.
type libsondeSeen struct {
	t                      *testing.T
	step                   Step
	steps, rows            uint64
	dropped, missing       uint64 // rows that STEPs and MISSING name
	aborted, opened, ended int
	bye                    bool
}

func (s *libsondeSeen) look(r *Record) {
	t := s.t
	t.Helper()
	var err error
	switch r.Kind {
	case KindLayout:
		var l Layout
		if l, err = ParseLayout(r.Payload); err == nil && !reflect.DeepEqual(l.Entries, rowsLayout) {
			t.Fatalf("layout is %+v", l)
		}
	case KindRequestOpen:
		s.opened++
	case KindStep:
		s.steps++
		if err = ParseStepInto(&s.step, r.Payload); err == nil && s.step.Layouts[0].Outcome != ReasonNone {
			s.dropped += uint64(2*s.step.TokenRows(0) + s.step.EntryRows(0, SelectSampled))
		}
	case KindMissing:
		var m Missing
		m, err = ParseMissing(r.Payload)
		for _, r := range m.Ranges {
			s.missing += r.Rows
		}
	case KindCapture:
		if r.Aborted() {
			s.aborted++
			break
		}
		var entries []EntryRows
		if entries, err = SplitCapture(&Layout{Entries: rowsLayout}, &s.step, 0, r.Payload); err != nil {
			break
		}
		for i := range entries {
			if wrong := rowsFill(entries[i].Data, s.step.Ranges, i, false); wrong > 0 {
				t.Fatalf("step %d: %d bytes of %s are wrong", r.Step, wrong, rowsLayout[i].Hook)
			}
			s.rows += uint64(entries[i].Rows)
		}
	case KindRequestEnd:
		s.ended++
	case KindBye:
		s.bye = true
	}
	if err != nil {
		t.Fatalf("record %d: %v", r.Seq, err)
	}
}

// read reads and releases until the peer is gone or stop says so.
func (s *libsondeSeen) read(session *Session, stop func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 60*time.Second)
	defer cancel()
	var batch []Record
	for stop == nil || !stop() {
		var err error
		if batch, err = session.Next(ctx, batch[:0]); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			s.t.Fatal(err)
		}
		for i := range batch {
			s.look(&batch[i])
		}
		session.Release(batch[len(batch)-1].Seq + 1)
	}
}

func listenAt(t *testing.T, socket string) *Listener {
	t.Helper()
	l, err := Listen(socket, ListenerOptions{Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func acceptAt(t *testing.T, l *Listener) *Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := l.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Rows written in C++, some of them by another thread after their step, mean in Go
// what they meant there; the ring wraps many times.
func TestEveryRowOfLibsondeArrives(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l := listenAt(t, socket)
	p := startLibsonde(t, libsondeWriter, socket, "5000", "mode=complete", "detach=1")
	s := acceptAt(t, l)
	if c := s.Config(); c.EngineInstance != "cpp-0" || c.Mode != Complete || int(c.ProducerPID) != p.command.Process.Pid {
		t.Errorf("config is %+v", c)
	}
	seen := libsondeSeen{t: t}
	seen.read(s, nil)
	var stats libsondeStats
	p.result(t, &stats)
	if want := (libsondeStats{Steps: 5000, Captured: seen.rows, Attaches: 1}); stats != want {
		t.Errorf("engine counts %+v, want %+v", stats, want)
	}
	if seen.steps != 5000 || seen.opened != 4 || seen.ended != 4 || !seen.bye || seen.aborted != 0 || len(s.Lost()) > 0 {
		t.Errorf("saw %+v, lost %v", seen, s.Lost())
	}
	if c := s.Producer(); c.CapturedRows != stats.Captured || c.Steps != 5000 || !c.Closing {
		t.Errorf("counters are %+v", c)
	}
}

// What does not fit is dropped, and each dropped row is named by its STEP or by
// MISSING.
func TestLibsondeNamesWhatItDrops(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l := listenAt(t, socket)
	p := startLibsonde(t, libsondeWriter, socket, "20000")
	s := acceptAt(t, l)
	seen := libsondeSeen{t: t}
	time.Sleep(50 * time.Millisecond) // the ring fills
	seen.read(s, nil)
	var stats libsondeStats
	p.result(t, &stats)
	if stats.Dropped == 0 || stats.ControlFull == 0 || stats.Captured != seen.rows+stats.Dropped {
		t.Errorf("engine counts %+v; %d rows arrived", stats, seen.rows)
	}
	if seen.dropped+seen.missing+stats.Unnamed != stats.Dropped || seen.missing+stats.Unnamed != stats.ControlFull {
		t.Errorf("engine counts %+v; STEPs name %d dropped rows and MISSING %d", stats, seen.dropped, seen.missing)
	}
}

// The engine goes on without its agent and hands the next one what is alive.
func TestLibsondeAttachesToTheNextAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l := listenAt(t, socket)
	p := startLibsonde(t, libsondeWriter, socket, "20000", "mode=complete", "pause_us=20", "detach=1")
	seen := libsondeSeen{t: t}
	for restart := range 4 {
		s := acceptAt(t, l)
		if restart > 0 && len(s.Snapshot()) != 6 { // model, layout, four requests
			t.Fatalf("restart %d: snapshot has %d records", restart, len(s.Snapshot()))
		}
		until := seen.steps + 1000
		seen.read(s, func() bool { return seen.steps >= until })
		// Everything was released: the next agent sees no record twice.
		if err := errors.Join(s.Close(), l.Close()); err != nil {
			t.Fatal(err)
		}
		l = listenAt(t, socket)
	}
	s := acceptAt(t, l)
	seen.read(s, nil)
	var stats libsondeStats
	p.result(t, &stats)
	if stats.Attaches != 5 || stats.Captured != seen.rows+stats.Dropped || seen.dropped+seen.missing != stats.Dropped ||
		stats.Refused != 0 || !seen.bye {
		t.Errorf("engine counts %+v; saw %+v", stats, seen)
	}
}

func TestAKilledLibsondeEngineLeavesOnlyWholeRows(t *testing.T) {
	for _, after := range [...]uint64{1, 333, 2000} {
		killLibsonde(t, after)
	}
}

func killLibsonde(t *testing.T, after uint64) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l := listenAt(t, socket)
	p := startLibsonde(t, libsondeWriter, socket, "1000000000", "mode=complete", "detach=1")
	s := acceptAt(t, l)
	seen, killed := libsondeSeen{t: t}, false
	seen.read(s, func() bool {
		if seen.steps >= after && !killed {
			killed = true
			if err := p.command.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
		return false
	})
	_ = p.command.Wait() // it was killed
	if c := s.Producer(); c.Steps < seen.steps || c.Steps > seen.steps+1 || c.Closing {
		t.Errorf("saw %d steps; counters are %+v", seen.steps, c)
	}
	if lost := s.Lost(); len(lost) > 12 {
		t.Errorf("records %v are lost; at most nine copies were under way", lost)
	}
}

// rowsEngine writes what cuda/test/reader_peer.cpp checks, and returns the rows.
func rowsEngine(t *testing.T, w *Writer, steps int) uint64 {
	t.Helper()
	layout, err := w.DefineLayout(rowsLayout)
	if err == nil {
		err = w.OpenRequest(RequestOpen{Number: 3, ExternalID: "go"})
	}
	if err != nil {
		t.Fatal(err)
	}
	rows := uint64(0)
	for i := range steps {
		ranges := []StepRange{{Number: 3, Position: uint32(4 * i), Count: uint32(1 + i%4), Sampled: i%2 == 0, LayoutMask: 1},
			{Number: 9, Position: uint32(i), Count: 1, Pass: 2, Phase: PhaseDecode, Sampled: true, LayoutMask: 1}}
		step, err := w.BeginStep(ranges, []uint32{layout})
		if err != nil {
			t.Fatal(err)
		}
		if step.Captured(0) {
			for e := range rowsLayout {
				rowsFill(step.Span(0, e), ranges, e, true)
				rows += uint64(step.Rows(0, e))
			}
		}
		step.Commit()
	}
	return rows
}

type libsondeRead struct {
	First, Next, Rows, Steps, Captures, Aborted, Lost, Snapshot uint64
	Bye, End                                                    bool
}

// The Go writer's rows mean in C++ what they meant here, over the death of two
// agents in C++: their successor reads again from what was released.
func TestTheReaderInCppReadsTheGoWriter(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	w, err := NewWriter(WriterOptions{Socket: socket, DescCount: 64, DataBytes: 1 << 18, Mode: Complete,
		StepStallBudget: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	const steps = 4000
	dying := [...]*libsondeRun{prepareLibsonde(t, libsondeReader, socket, "die_after=700"),
		prepareLibsonde(t, libsondeReader, socket, "die_after=1500")}
	last := prepareLibsonde(t, libsondeReader, socket)
	started := make(chan error, 1)
	go func() {
		for _, r := range dying {
			_ = r.command.Run() // it kills itself
		}
		started <- last.command.Start()
	}()
	rows := rowsEngine(t, w, steps)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := w.Close(ctx); err != nil {
		t.Fatal(err)
	}
	var got libsondeRead
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	last.result(t, &got)
	stats := w.Stats()
	if stats.Attaches != 3 || stats.RefusedReleases != 0 || stats.CapturedRows != rows+sum(stats.DroppedRows[:]) {
		t.Errorf("writer counts %+v; it wrote %d rows", stats, rows)
	}
	if !got.Bye || !got.End || got.Snapshot != 2 || got.Next != stats.Claim || got.Aborted+got.Lost != 0 ||
		got.Steps == 0 || got.Steps >= steps || got.Rows == 0 {
		t.Errorf("the last agent saw %+v; the writer counts %+v", got, stats)
	}
}

// What the README shows compiles without a warning and does what it says.
func TestTheExampleOfLibsondeRuns(t *testing.T) {
	buildLibsonde(t, libsondeWriter)
	page, err := os.ReadFile("../cuda/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(page), "```c\n")
	example, _, ok := strings.Cut(example, "```\n")
	if !ok {
		t.Fatal("the README has no example in C")
	}
	dir := t.TempDir()
	source, binary, socket := filepath.Join(dir, "example.c"), filepath.Join(dir, "example"), filepath.Join(dir, "s")
	if err := os.WriteFile(source, []byte(example), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("make", "-C", "../cuda", "all").CombinedOutput(); err != nil {
		t.Fatalf("make -C cuda all: %v\n%s", err, out)
	}
	library, err := filepath.Abs("../build/cuda")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I../cuda", source, "-o",
		binary, "-L"+library, "-lsonde", "-Wl,-rpath,"+library).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	l := listenAt(t, socket)
	command := exec.CommandContext(t.Context(), binary, socket)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	s := acceptAt(t, l)
	records := drain(t, s, nil)
	if err := command.Wait(); err != nil {
		t.Fatalf("example: %v\n%s", err, stderr.String())
	}
	if want := 3 + 8*2 + 2; len(records) != want {
		t.Fatalf("read %d records, want %d", len(records), want)
	}
	step, err := ParseStep(records[3].Payload)
	if err != nil || step.TokenRows(0) != 3 || len(records[4].Payload) != 64 ||
		order.Uint32(records[4].Payload[32:]) != math.Float32bits(2) {
		t.Errorf("step is %+v, %v; its capture %x", step, err, records[4].Payload)
	}
}

func sum(values []uint64) (n uint64) {
	for _, v := range values {
		n += v
	}
	return n
}
