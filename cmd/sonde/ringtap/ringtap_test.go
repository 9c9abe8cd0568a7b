package ringtap

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"sonde/ring2"
)

// The test binary is its own agent, in a process that can be stopped.
const agentVariable = "RINGTAP_TEST_AGENT"

func TestMain(m *testing.M) {
	if socket := os.Getenv(agentVariable); socket != "" {
		agent(socket)
		return
	}
	os.Exit(m.Run())
}

// agent reads and releases until it is killed.
func agent(socket string) {
	l, err := ring2.Listen(socket, ring2.ListenerOptions{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	s, err := l.Accept(context.Background())
	if err != nil {
		panic(err)
	}
	var records []ring2.Record
	for err == nil {
		if records, err = s.Next(context.Background(), records[:0]); err == nil {
			s.Release(records[len(records)-1].Seq + 1)
		}
	}
}

// rig is an engine's ring in this process.
type rig struct {
	t      *testing.T
	w      *ring2.Writer
	layout uint32
	agent  *exec.Cmd
}

func newRig(t *testing.T, withAgent bool) *rig {
	t.Helper()
	r := &rig{t: t}
	dir := t.TempDir()
	o := ring2.WriterOptions{EngineInstance: "e\x1b[2J1", DescCount: 64, DataBytes: 256 << 10,
		StateDir: filepath.Join(dir, "state"), Logger: slog.New(slog.DiscardHandler)}
	if withAgent {
		o.Socket = filepath.Join(dir, "s")
		r.agent = exec.Command(os.Args[0])
		r.agent.Env = append(os.Environ(), agentVariable+"="+o.Socket)
		if err := r.agent.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = r.agent.Process.Kill()
			_ = r.agent.Wait()
		})
	}
	var err error
	if r.w, err = ring2.NewWriter(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = r.w.Close(ctx)
	})
	r.layout, err = r.w.DefineLayout([]ring2.LayoutEntry{
		{Hook: "resid_post", Layer: 1, DType: ring2.F32, Shape: []uint32{4}},
		{Hook: "resid_post", Layer: 2, DType: ring2.F32, Shape: []uint32{4}},
		{Hook: "logits", Layer: -1, DType: ring2.F32, Shape: []uint32{2}, Select: ring2.SelectSampled}})
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range []string{"r-1", "r-2"} {
		if err := r.w.OpenRequest(ring2.RequestOpen{Number: uint64(i + 1), ExternalID: id, PromptTokens: 3}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// step captures two tokens of r-1 and one of r-2. Values of layer n of request m
// are n*m; one of them is not a number.
func (r *rig) step(position uint32) {
	r.t.Helper()
	s, err := r.w.BeginStep([]ring2.StepRange{{Number: 1, Position: position, Count: 2, Sampled: true, LayoutMask: 1},
		{Number: 2, Position: position, Count: 1, LayoutMask: 1}}, []uint32{r.layout})
	if err != nil {
		r.t.Fatal(err)
	}
	for entry, layer := range []float32{1, 2} {
		for i, b := 0, s.Span(0, entry); len(b) > 0; i, b = i+1, b[4:] {
			v := layer * float32(1+i/8)
			if entry == 1 && i == 3 {
				v = float32(math.NaN())
			}
			binary.LittleEndian.PutUint32(b, math.Float32bits(v))
		}
	}
	s.Commit()
}

// find is this process's ring of the rig.
func (r *rig) find() *Ring {
	r.t.Helper()
	rings, err := Find(os.Getpid())
	if err != nil {
		r.t.Fatal(err)
	}
	ring, err := Select(rings, fmt.Sprintf("%016x", r.w.Epoch()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(ring.Close)
	return ring
}

// once taps without following, as JSON.
func (r *rig) once(o Options) (State, []Record) {
	r.t.Helper()
	var b bytes.Buffer
	o.JSON, o.Out = true, &b
	if o.Last == 0 {
		o.Last = 100
	}
	if err := Tap(r.t.Context(), r.find(), o); err != nil {
		r.t.Fatal(err)
	}
	return parse(r.t, b.String())
}

func parse(t *testing.T, text string) (state State, records []Record) {
	t.Helper()
	for line := range strings.Lines(text) {
		var kind struct{ Type string }
		if err := json.Unmarshal([]byte(line), &kind); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		var rec Record
		var err error
		if kind.Type == "ring" {
			err = json.Unmarshal([]byte(line), &state)
		} else if err = json.Unmarshal([]byte(line), &rec); err == nil {
			records = append(records, rec)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return state, records
}

// The moment when somebody needs to look is when the agent does not answer.
func TestTapWorksWhileTheAgentIsStopped(t *testing.T) {
	r := newRig(t, true)
	r.step(0)
	waitFor(t, func() bool { s := r.w.Stats(); return s.Attached && s.Release == s.Claim })
	if err := r.agent.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return processState(t, r.agent.Process.Pid) == "T" })
	before := r.w.Stats().Release
	for i := range 5 {
		r.step(uint32(2 + 2*i))
	}
	state, records := r.once(Options{Stats: true})
	if state.Release != before || state.Claim != before+10 || state.Lag != 10 || state.Steps != 6 ||
		state.CapturedRows != 6*7 || state.AgentBeat == nil || state.PID != os.Getpid() {
		t.Errorf("state %+v; released %d", state, before)
	}
	fresh := 0
	for _, rec := range records {
		if rec.Kind == "capture" && !rec.Released {
			fresh++
			if len(rec.Stats) != 3 || rec.Stats[0].Rows != 3 || rec.Stats[2].Rows != 1 {
				t.Errorf("figures %+v", rec.Stats)
			}
		}
	}
	if fresh != 5 {
		t.Errorf("%d captures that the agent has not released; want 5", fresh)
	}
	if got := processState(t, r.agent.Process.Pid); got != "T" {
		t.Errorf("the agent was woken: its state is %s", got)
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never came so far")
		}
	}
}

// processState is the letter that the kernel gives a process.
func processState(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1]
}

// A filter that shows other rows than those asked for misleads whoever debugs.
func TestFiltersShowWhatWasAskedForAlone(t *testing.T) {
	r := newRig(t, false)
	r.step(0)
	two, none := 2, -1
	for name, c := range map[string]struct {
		f     Filter
		kinds string
		hooks string
		rows  int
		mean  float64
	}{
		"all":     {Filter{}, "layout request_open request_open step capture", "resid_post/1 resid_post/2 logits", 3, 8. / 3},
		"hook":    {Filter{Hook: "resid_*"}, "layout capture", "resid_post/1 resid_post/2", 3, 8. / 3},
		"layer":   {Filter{Layer: &two}, "layout capture", "resid_post/2", 3, (math.Sqrt(12) + 4 + 8) / 3},
		"none":    {Filter{Layer: &none}, "layout capture", "logits", 1, 0},
		"request": {Filter{Request: "r-2"}, "request_open step capture", "resid_post/1 resid_post/2 logits", 1, 4},
		"both": {Filter{Hook: "resid_post", Layer: &two, Request: "r-1"}, "capture", "resid_post/2", 2,
			(math.Sqrt(12) + 4) / 2},
		"nobody": {Filter{Request: "r-3"}, "", "", 0, 0},
	} {
		_, records := r.once(Options{Filter: c.f, Stats: true})
		var kinds []string
		for _, rec := range records {
			kinds = append(kinds, rec.Kind)
		}
		if got := strings.Join(kinds, " "); got != c.kinds {
			t.Errorf("%s: %s; want %s", name, got, c.kinds)
		}
		if len(records) == 0 {
			continue
		}
		last := records[len(records)-1]
		if got := strings.Join(last.Hooks, " "); got != c.hooks {
			t.Errorf("%s: hooks %s; want %s", name, got, c.hooks)
		}
		if s := last.Stats[0]; s.Rows != c.rows || math.Abs(s.L2Mean-c.mean) > 1e-5 && name != "all" && name != "hook" {
			t.Errorf("%s: figures %+v; want %d rows of mean norm %v", name, s, c.rows, c.mean)
		}
	}
	_, records := r.once(Options{Filter: Filter{Layer: &two}, Stats: true, Last: 1})
	if s := records[0].Stats[0]; s.NonFinite != 1 || s.AbsMax != 4 || s.DType != "f32" {
		t.Errorf("figures %+v; want one that is not a number", s)
	}
}

// Layouts and requests are announced once and leave the ring; a tap that comes later
// must know them all the same, from the journal.
func TestNamesAreKnownLongAfterTheirRecordsAreGone(t *testing.T) {
	r := newRig(t, true)
	for i := range 200 {
		r.step(uint32(2 * i))
		waitFor(t, func() bool { s := r.w.Stats(); return s.Claim-s.Release < 16 })
	}
	_, records := r.once(Options{Filter: Filter{Request: "r-2", Hook: "resid_post"}, Last: 1})
	if len(records) != 1 || records[0].Seq < 300 || len(records[0].Hooks) != 2 {
		t.Errorf("%+v", records)
	}
}

// A terminal has 80 columns, and names from clients must not command it.
func TestLinesFitATerminalAndHoldNoControlCharacters(t *testing.T) {
	r := newRig(t, false)
	r.step(0)
	var b bytes.Buffer
	ctx, stop := context.WithCancel(t.Context())
	frames := 0
	o := Options{Last: 50, Follow: true, Stats: true, Interval: 10 * time.Millisecond, Rate: 1000, Out: &b,
		Screen: func() (int, int) {
			if frames++; frames == 3 {
				stop()
			}
			return 80, 30
		}}
	if err := Tap(ctx, r.find(), o); err != nil {
		t.Fatal(err)
	}
	shown := strings.Split(b.String(), "\x1b[H\x1b[J")
	if len(shown) < 3 {
		t.Fatalf("%d frames", len(shown)-1)
	}
	last := shown[len(shown)-1]
	for line := range strings.Lines(last) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	if strings.ContainsFunc(last, func(c rune) bool { return c < ' ' && c != '\n' }) || strings.Count(last, "\n") > 30 {
		t.Errorf("%q", last)
	}
	for _, want := range []string{"engine e?[2J1", "capture*", "l2 mean", "1 nonfinite", "never attached", "claim 5"} {
		if !strings.Contains(last, want) {
			t.Errorf("the screen does not hold %q:\n%s", want, last)
		}
	}
}

// What comes too fast is skipped, and that is said; nothing is shown twice.
func TestRateIsKeptAndWhatIsSkippedIsCounted(t *testing.T) {
	r := newRig(t, false)
	ring := r.find()
	tap := &tap{o: Options{Last: 1}, r: ring}
	ring.learnAll()
	tap.newest()
	for i := range 10 {
		r.step(uint32(2 * i))
	}
	first := tap.look(6)
	if len(first) != 6 || tap.skipped.Rate != 14 || first[5].Seq != ring.State().Claim-1 {
		t.Errorf("%d records, %+v", len(first), tap.skipped)
	}
	if again := tap.look(6); len(again) != 0 {
		t.Errorf("%d records were shown twice", len(again))
	}
	tap.next -= 500 // as if the writer had lapped it
	tap.look(6)
	if tap.skipped.Overwritten == 0 {
		t.Errorf("%+v", tap.skipped)
	}
}

// A step that is being computed is neither skipped nor shown as done.
func TestATapWaitsForARecordThatIsBeingCopied(t *testing.T) {
	r := newRig(t, false)
	ring := r.find()
	tap := &tap{o: Options{Last: 1}, r: ring}
	ring.learnAll()
	tap.newest()
	s, err := r.w.BeginStep([]ring2.StepRange{{Number: 1, Count: 1, LayoutMask: 1}}, []uint32{r.layout})
	if err != nil {
		t.Fatal(err)
	}
	if got := tap.look(10); len(got) != 1 || got[0].Kind != "step" {
		t.Errorf("%+v", got)
	}
	s.Commit()
	if got := tap.look(10); len(got) != 1 || got[0].Kind != "capture" {
		t.Errorf("%+v", got)
	}
}

func TestSeveralRingsOfOneProcessAreToldApart(t *testing.T) {
	a, b := newRig(t, false), newRig(t, false)
	a.step(0)
	b.step(0)
	b.step(2)
	stateA, _ := a.once(Options{})
	stateB, _ := b.once(Options{})
	if stateA.Steps != 1 || stateB.Steps != 2 || stateA.Epoch == stateB.Epoch {
		t.Errorf("%+v\n%+v", stateA, stateB)
	}
	rings, err := Find(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := List(&out, rings, false); err != nil || strings.Count(out.String(), "ring  ") < 2 {
		t.Errorf("%v\n%s", err, out.String())
	}
	if _, err := Select(rings, "0000000000000000"); err == nil {
		t.Error("a ring of another epoch was selected")
	}
	if _, err := Find(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a process that does not exist: %v", err)
	}
}
