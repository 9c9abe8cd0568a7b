package bustap

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/schema"
)

var update = flag.Bool("update", false, "rewrite the golden output in testdata")

func vectorHeader(layer int) schema.Header {
	return schema.Header{Kind: schema.KindVectors, Tenant: "acme", Engine: "e\x1b[2J1", Rank: 1, Epoch: 0xabc,
		Hook: "resid_post", Layer: layer, ShardCount: 1, DType: "f32", Shape: []int{4}, Model: "m", PolicyVersion: "p"}
}

// vectors is a message of rows whose elements are seq+row, the first one NaN in row 1.
func vectors(t testing.TB, h schema.Header, seq uint64, prev schema.Cursor, requests ...string) (schema.Header,
	[]byte) {
	t.Helper()
	e, err := schema.NewVectorEncoder(h)
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range requests {
		vec := make([]byte, 16)
		for k := range 4 {
			v := float32(seq) + float32(i)
			if i == 1 && k == 0 {
				v = float32(math.NaN())
			}
			binary.LittleEndian.PutUint32(vec[4*k:], math.Float32bits(v))
		}
		err := e.Append(schema.VectorRow{Seq: seq, Row: uint32(i), Number: uint64(i), Request: id, Position: int32(10 + i),
			Phase: schema.PhaseDecode, Vec: vec})
		if err != nil {
			t.Fatal(err)
		}
	}
	data, sent, err := e.Encode(prev)
	if err != nil {
		t.Fatal(err)
	}
	return sent, data
}

func requests(t testing.TB, seq uint64, events ...string) (schema.Header, []byte) {
	t.Helper()
	h := vectorHeader(-1)
	h.Kind, h.Hook, h.DType, h.Shape, h.ShardCount = schema.KindRequests, schema.Hookless, "", nil, 1
	var rows []schema.RequestRow
	for i, e := range events {
		h.AddRow(seq, uint32(i))
		rows = append(rows, schema.RequestRow{Seq: seq, Row: uint32(i), Event: e, Number: 1, Request: "r-1", PromptTokens: 7})
	}
	data, err := schema.EncodeRequests(h, rows)
	if err != nil {
		t.Fatal(err)
	}
	return h, data
}

func publish(t testing.TB, b bus.Bus, h schema.Header, data []byte) {
	publishTo(t, b, schema.Subject(h), data)
}

func publishTo(t testing.TB, b bus.Bus, subject string, data []byte) {
	t.Helper()
	done := make(chan error, 1)
	m := bus.Message{Subject: subject, Data: data}
	if err := b.Publish(t.Context(), m, func(_ uint64, err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// screen collects what a tap writes and ends it when enough lines are there.
type screen struct {
	mu    sync.Mutex
	text  bytes.Buffer
	until func(text string) bool
	end   context.CancelFunc
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(p)
	if s.until(s.text.String()) {
		s.end()
	}
	return len(p), nil
}

func lines(n int) func(string) bool {
	return func(text string) bool { return strings.Count(text, "\n") >= n }
}

// show taps until the output is as wanted. The time limit is a test that hangs, not
// one that fails.
func show(t testing.TB, b bus.Bus, o Options, until func(string) bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s := &screen{until: until, end: cancel}
	o.Out = s
	if o.Rate == 0 {
		o.Rate = 1000
	}
	if err := Tap(ctx, b, o); err != nil {
		t.Fatalf("a tap that the user ends failed: %v", err)
	}
	if !until(s.text.String()) {
		t.Fatalf("the tap did not show what was wanted:\n%s", s.text.String())
	}
	return s.text.String()
}

var clocks = regexp.MustCompile(`\d\d:\d\d:\d\d\.\d\d\d|"stored_ns":\d+`)

// story publishes two whole messages of a chain, a gap in it, a message of another
// chain, one that is none, and events of a request.
func story(t testing.TB) *bustest.Bus {
	b := bustest.New()
	t.Cleanup(func() { b.Close() })
	h, data := vectors(t, vectorHeader(2), 5, schema.Cursor{}, "r-1", "r-2")
	publish(t, b, h, data)
	h, data = vectors(t, vectorHeader(2), 6, h.Last(), "r-1")
	publish(t, b, h, data)
	h, data = vectors(t, vectorHeader(3), 7, schema.Cursor{}, "r-2")
	publish(t, b, h, data)
	h, data = vectors(t, vectorHeader(2), 9, schema.Cursor{Seq: 8, Row: 4}, "r-1")
	publish(t, b, h, data)
	publishTo(t, b, schema.Subject(h), []byte("\x1b]0;owned\x07"))
	h, data = requests(t, 10, "open", "open", "end")
	publish(t, b, h, data)
	return b
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || string(want) != got {
		t.Errorf("%s (%v): got\n%s\nwant\n%s", file, err, got, want)
	}
}

func TestWhatATapShows(t *testing.T) {
	layer := 2
	for name, o := range map[string]Options{
		"all":     {},
		"stats":   {Stats: true},
		"request": {Filter: Filter{Request: "r-1"}, Stats: true},
		"layer":   {Filter: Filter{Hook: "resid_*", Layer: &layer}},
		"json":    {Stats: true, JSON: true},
	} {
		n := map[string]int{"all": 7, "stats": 7, "request": 8, "layer": 5, "json": 7}[name]
		text := show(t, story(t), o, lines(n))
		golden(t, name+".txt", clocks.ReplaceAllString(text, "TIME"))
	}
}

func TestHostileNamesDoNotCommandTheTerminal(t *testing.T) {
	if text := show(t, story(t), Options{}, lines(7)); strings.ContainsAny(text, "\x1b\x07") {
		t.Errorf("a control character came through:\n%q", text)
	}
}

func TestNarrowTerminalsGetOneLineAMessage(t *testing.T) {
	for _, width := range []int{-1, 0, 1, 2, 20, 79} {
		text := show(t, story(t), Options{Width: func() int { return width }}, lines(7))
		for line := range strings.Lines(text) {
			if n := len([]rune(line)) - 1; width > 1 && n > width {
				t.Errorf("width %d: line of %d letters: %s", width, n, line)
			}
		}
	}
}

func TestEveryLineIsShownOrCounted(t *testing.T) {
	b := bustest.New()
	defer b.Close()
	const messages = 300
	prev := schema.Cursor{}
	for i := range messages {
		h, data := vectors(t, vectorHeader(2), uint64(i+1), prev, "r-1")
		publish(t, b, h, data)
		prev = h.Last()
	}
	counted := func(text string) (n int) {
		for line := range strings.Lines(text) {
			var l struct {
				Type    string
				Skipped int
			}
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatalf("%v in %q", err, line)
			}
			if n += l.Skipped; l.Type == "message" {
				n++
			}
		}
		return n
	}
	text := show(t, b, Options{Rate: 5, JSON: true}, func(text string) bool { return counted(text) >= messages })
	if n := counted(text); n != messages {
		t.Errorf("%d lines are shown or counted; there were %d", n, messages)
	}
	if n := strings.Count(text, "\n"); n >= messages/2 {
		t.Errorf("%d lines came through a limit of 5 a second", n)
	}
}

func TestCopiesAndLateCopiesAreNoGap(t *testing.T) {
	b := bustest.New()
	defer b.Close()
	first, one := vectors(t, vectorHeader(2), 1, schema.Cursor{}, "r-1")
	_, two := vectors(t, vectorHeader(2), 2, first.Last(), "r-1")
	for _, data := range [][]byte{one, two, one, two, two, one} {
		publish(t, b, first, data)
	}
	if text := show(t, b, Options{}, lines(6)); strings.Contains(text, "GAP") {
		t.Errorf("copies look like a gap:\n%s", text)
	}
}

func TestAPositionThatDoesNotExistYetIsAnError(t *testing.T) {
	err := Tap(t.Context(), story(t), Options{From: 99, Rate: 1, Out: &bytes.Buffer{}})
	if err == nil || !strings.Contains(err.Error(), "ends at 6") {
		t.Errorf("got %v", err)
	}
}

func TestATapGoesOnBehindWhatWasTrimmedAndRecreated(t *testing.T) {
	b := story(t)
	if err := b.Trim(t.Context(), 0, 4); err != nil {
		t.Fatal(err)
	}
	text := show(t, b, Options{From: 2}, lines(4))
	if !strings.Contains(text, "positions 2 to 3 were trimmed") || !strings.Contains(text, "        4 ") {
		t.Errorf("after a trim:\n%s", text)
	}
	h, data := vectors(t, vectorHeader(9), 1, schema.Cursor{}, "again")
	var once sync.Once
	text = show(t, b, Options{From: 5}, func(text string) bool {
		if strings.Count(text, "\n") >= 2 {
			once.Do(func() {
				b.Recreate()
				go publish(t, b, h, data)
			})
		}
		return strings.Contains(text, "resid_post/9")
	})
	if !strings.Contains(text, "made anew") {
		t.Errorf("a new stream is not told:\n%s", text)
	}
}

// Messages of all partitions are shown, each at a place that --from takes again.
func TestATapShowsAllPartitions(t *testing.T) {
	b := bustest.NewPartitioned(3)
	defer b.Close()
	var want []string
	counts := map[int]int{}
	for i := range 6 {
		h := vectorHeader(2)
		h.Engine = fmt.Sprint("engine", i)
		h, data := vectors(t, h, 1, schema.Cursor{}, "r-1")
		publish(t, b, h, data)
		p := bus.PartitionOf(schema.Subject(h), 3)
		counts[p]++
		want = append(want, fmt.Sprintf("%d:%d", p, counts[p]))
	}
	if len(counts) < 2 {
		t.Fatal("all engines are in one partition")
	}
	text := show(t, b, Options{}, lines(6))
	for _, place := range want {
		if !strings.Contains(text, " "+place+" ") {
			t.Errorf("%s is not shown:\n%s", place, text)
		}
	}
	for p, n := range counts {
		only := show(t, b, Options{From: 1, Only: p}, lines(n))
		if !strings.HasPrefix(strings.TrimLeft(only, " "), fmt.Sprintf("%d:1 ", p)) || strings.Count(only, "\n") != n {
			t.Errorf("partition %d has %d messages:\n%s", p, n, only)
		}
	}
	last := counts[0] + 2
	err := Tap(t.Context(), b, Options{From: uint64(last), Only: 0, Rate: 1, Out: &bytes.Buffer{}})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint("position 0:", last)) {
		t.Errorf("beyond the end: %v", err)
	}
}

func TestATapStartsAtATime(t *testing.T) {
	b := story(t)
	moment := b.Messages()[3].Stored
	if text := show(t, b, Options{Since: moment}, lines(3)); !strings.HasPrefix(text, "        4 ") {
		t.Errorf("since position 4:\n%s", text)
	}
}

func TestHostileMessagesAreLinesAndNothingElse(t *testing.T) {
	b := bustest.New()
	defer b.Close()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	h, good := vectors(t, vectorHeader(2), 5, schema.Cursor{}, "r-1", "r-2")
	const messages = 400
	for range messages {
		data := bytes.Clone(good)
		for range 1 + r.IntN(8) {
			data[r.IntN(len(data))] = byte(r.Uint32())
		}
		publish(t, b, h, data[:len(data)-r.IntN(2)*r.IntN(len(data))])
	}
	publish(t, b, h, good)
	for _, o := range []Options{{Stats: true, JSON: true}, {Stats: true}, {Stats: true, Filter: Filter{Request: "r-1"}}} {
		o.Rate = 10 * messages
		show(t, b, o, func(text string) bool {
			return strings.Contains(text, fmt.Sprintf(`"stream_position":%d,`, messages+1)) ||
				strings.Contains(text, fmt.Sprintf("\n%9d ", messages+1))
		})
	}
}

func TestWrongFiltersAreRefused(t *testing.T) {
	for _, f := range []Filter{{Hook: "["}, {Kind: "tensors"}} {
		if err := f.Check(); err == nil {
			t.Errorf("%+v is accepted", f)
		}
	}
}

// A filter that the broker applies must choose what the header says, whatever bytes
// the names hold.
func TestSubjectsOfAFilterMatchTheSubjectsOfItsMessages(t *testing.T) {
	for _, tenant := range []string{"acme", "a.b", "*", ">", "_", "", "a b=ü"} {
		for _, layer := range []int{-1, 0, 31} {
			h := vectorHeader(layer)
			h.Tenant, h.Hook = tenant, "q.norm"
			f := Filter{Tenant: tenant, Hook: h.Hook, Layer: &layer, Kind: h.Kind}
			if s := schema.Subject(h); !bus.MatchAny(f.subjects(), s) || !f.wants(&h) {
				t.Errorf("%v does not match %s", f.subjects(), s)
			}
		}
	}
}
