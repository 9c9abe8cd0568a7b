package top

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden output in testdata")

// pipelineText is what a process with all roles says; k grows with each moment.
func pipelineText(k int) string {
	var b strings.Builder
	put := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	put("# TYPE sonde_producer_rows_total counter")
	for rank := range 2 {
		of := fmt.Sprintf(`engine="llm",rank="%d"`, rank)
		put(`sonde_producer_rows_total{%s,class="acknowledged",reason=""} %d`, of, 1000+500*k*(rank+1))
		put(`sonde_producer_rows_total{%s,class="dropped",reason="no_space"} %d`, of, 3*rank)
		put(`sonde_producer_rows_total{%s,class="filtered",reason=""} %d`, of, 70)
		put(`sonde_producer_rows_total{%s,class="dead_lettered",reason=""} %d`, of, 1)
		put(`sonde_producer_captured_rows{%s} %d`, of, 1010+500*k*(rank+1))
		put(`sonde_producer_inflight_rows{%s} %d`, of, 6)
		put(`sonde_producer_inflight_bytes{%s} %d`, of, 65536)
		put(`sonde_producer_held_bytes{%s} %d`, of, 3<<20)
		put(`sonde_producer_ring_records{%s} %d`, of, 12*rank)
		put(`sonde_producer_oldest_batch_seconds{%s} 0.%d5`, of, rank+1)
	}
	put("sonde_producer_ranks 2")
	put(`sonde_producer_messages_total{kind="vectors"} %d`, 10*k)
	put(`sonde_producer_message_bytes_total{kind="vectors"} %d`, 5<<20*k)
	put("sonde_bus_connected 1\nsonde_bus_stream_bytes 1.5e9\nsonde_bus_stream_max_bytes 8589934592")
	put("sonde_bus_stream_messages 4711\nsonde_bus_window_bytes 131072")
	put(`sonde_materializer_lag_messages{partition="0"} 12`)
	put(`sonde_materializer_lag_messages{partition="1"} 5`)
	put("sonde_materializer_oldest_uncommitted_seconds 0.4\nsonde_lake_version 42")
	put(`sonde_materializer_rows_stored_total{table="vectors"} %d`, 400*k)
	put("# TYPE sonde_materializer_commit_seconds histogram")
	put(`sonde_materializer_commit_seconds_bucket{le="0.01"} 0`)
	put(`sonde_materializer_commit_seconds_bucket{le="0.02"} 40`)
	put(`sonde_materializer_commit_seconds_bucket{le="+Inf"} 40`)
	put("sonde_materializer_commit_seconds_sum 0.5\nsonde_materializer_commit_seconds_count 40")
	put(`sonde_detector_ready{detector="german"} 1`)
	put(`sonde_detector_ready{detector="harm"} 0`)
	put(`sonde_detector_rows_total{detector="german",result="scored"} %d`, 200*k)
	put(`sonde_detector_alerts_total{detector="german",level="stop",mode="alert"} 3`)
	put("# TYPE sonde_detector_tensor_to_verdict_seconds histogram")
	put(`sonde_detector_tensor_to_verdict_seconds_bucket{detector="german",le="0.001"} %d`, 100*k)
	put(`sonde_detector_tensor_to_verdict_seconds_bucket{detector="german",le="0.002"} %d`, 200*k)
	put(`sonde_detector_tensor_to_verdict_seconds_bucket{detector="german",le="+Inf"} %d`, 200*k)
	put(`sonde_detector_tensor_to_verdict_seconds_sum{detector="german"} 1`)
	put(`sonde_detector_tensor_to_verdict_seconds_count{detector="german"} %d`, 200*k)
	return b.String()
}

const engineText = `sonde_engine_steps_total 10
sonde_engine_tokens_total{phase="decode"} 100
sonde_engine_ring_captured_rows_total 900
sonde_engine_ring_dropped_rows_total{reason="no_slot"} 4
sonde_engine_ring_used_descriptors 12
sonde_engine_ring_attached 0
`

// at is the answer of a process at a moment, in seconds.
func at(t testing.TB, second int, text string) *scrape {
	t.Helper()
	families, err := parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return &scrape{at: time.Unix(int64(second), 0), families: families}
}

func wholeView(t testing.TB) *View {
	no, yes := false, true
	v := &View{Processes: []Process{{URL: "http://a:9464", Ready: &no, Missing: []string{
		"detector: harm refuses resid_post layer 2 of engine \"llm\": shape [64]"}},
		{URL: "http://b:9464", Error: "connect: connection refused"}, {URL: "http://c:8000"},
		{URL: "http://d:1", Ready: &yes}}}
	v.add("http://a:9464", window{old: at(t, 10, pipelineText(1)), now: at(t, 15, pipelineText(11))})
	later := strings.ReplaceAll(engineText, "100", "350")
	v.add("http://c:8000", window{old: at(t, 10, engineText), now: at(t, 15, later)})
	v.sort()
	v.Lake.UnchangedFor = 2
	return v
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

func TestWhatTheScreenShows(t *testing.T) {
	v := wholeView(t)
	golden(t, "screen.txt", strings.Join(v.lines(defaultWidth, defaultHeight-2), "\n")+"\n")
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "view.json", string(text)+"\n")
}

func TestTinyTerminalsHoldEveryView(t *testing.T) {
	v := wholeView(t)
	for i := range 100 {
		v.Ranks = append(v.Ranks, Rank{Engine: "an engine with a long name \x1b[2J ü", Rank: fmt.Sprint(i)})
		v.Detectors = append(v.Detectors, Detector{Name: strings.Repeat("détecteur", 9)})
	}
	for width := 1; width < 130; width += 3 {
		for height := 1; height < 60; height += 2 {
			lines := v.lines(width, height)
			if len(lines) > height {
				t.Fatalf("%dx%d: %d lines", width, height, len(lines))
			}
			for _, l := range lines {
				if n := len([]rune(l)); n > width || strings.Contains(l, "\x1b") {
					t.Fatalf("%dx%d: a line of %d letters: %q", width, height, n, l)
				}
			}
		}
	}
	if all := strings.Join(v.lines(80, 22), "\n"); !strings.Contains(all, "more ranks") ||
		!strings.Contains(all, "more detectors") {
		t.Errorf("what does not fit is not counted:\n%s", all)
	}
}

func TestARestartedProcessHasNoNegativeRates(t *testing.T) {
	v := &View{}
	v.add("a", window{old: at(t, 10, pipelineText(50)), now: at(t, 15, pipelineText(1))})
	v.sort()
	for _, r := range v.Ranks {
		if r.RowsPerS < 0 || r.DroppedPerS < 0 {
			t.Errorf("rank %s: %v rows/s", r.Rank, r.RowsPerS)
		}
	}
	d := v.Detectors[0]
	if v.Agent.BytesPerS < 0 || d.P50S == nil || *d.P50S != 0.001 {
		t.Errorf("bytes/s %v, p50 %v", v.Agent.BytesPerS, d.P50S)
	}
}

// The quantiles must be those of the window, not of the life of the process.
func TestOldLatenciesDoNotHideNewOnes(t *testing.T) {
	const form = "# TYPE h histogram\nh_bucket{le=\"1\"} %d\nh_bucket{le=\"2\"} %d\n" +
		"h_bucket{le=\"+Inf\"} %d\nh_sum 1\nh_count %d\n"
	old := at(t, 0, fmt.Sprintf(form, 1000, 1000, 1000, 1000))
	w := window{old: old, now: at(t, 5, fmt.Sprintf(form, 1000, 1010, 1010, 1010))}
	if p, ok := w.quantile(0.5, "h"); !ok || p != 1.5 {
		t.Errorf("p50 of the window is %v, want 1.5", p)
	}
	w.now = at(t, 5, fmt.Sprintf(form, 1000, 1000, 1010, 1010))
	if p, ok := w.quantile(0.99, "h"); !ok || p != 2 {
		t.Errorf("p99 beyond the last bound is %v, want its start", p)
	}
	w.now = old
	if p, ok := w.quantile(0.5, "h"); !ok || p != 0.5 {
		t.Errorf("p50 of an idle window is %v, want that of all time", p)
	}
	if _, ok := w.quantile(0.5, "absent"); ok {
		t.Error("a histogram that does not exist has a quantile")
	}
}

func TestHostileMetricsAreAnErrorOrAView(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	words := []string{"NaN", "+Inf", "-Inf", "1e308", "-1e308", "\x1b[2J", "{", "}", "\"", "\n", "\\", "# TYPE ",
		"le=\"\"", "sonde_producer_ranks{engine=\"\x00\"} ", "\xff\xfe", "18446744073709551616", "_bucket", "_sum"}
	text := pipelineText(3) + engineText
	for range 2000 {
		hostile := text
		for range 1 + r.IntN(4) {
			i := r.IntN(len(hostile))
			k := min(len(hostile), i+r.IntN(12))
			hostile = hostile[:i] + words[r.IntN(len(words))] + hostile[k:]
		}
		families, err := parse(strings.NewReader(hostile))
		if err != nil {
			continue
		}
		v := &View{}
		v.add("a", window{old: at(t, 10, text), now: &scrape{at: time.Unix(11, 0), families: families}})
		v.sort()
		if _, err := json.Marshal(v); err != nil {
			t.Fatalf("%v with\n%s", err, hostile)
		}
		for _, l := range v.lines(80, 22) {
			if strings.Contains(l, "\x1b") {
				t.Fatalf("a control character came through: %q", l)
			}
		}
	}
}

// endless says a valid line for ever.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	return copy(p, strings.Repeat("# a comment\n", len(p)/12+1)), nil
}

func TestEndlessMetricsEnd(t *testing.T) {
	if _, err := parse(endless{}); err == nil || !strings.Contains(err.Error(), "more than 16 MiB") {
		t.Errorf("got %v", err)
	}
}

func TestManyRanksAreAddedUpOnce(t *testing.T) {
	var b strings.Builder
	b.WriteString("sonde_producer_ranks 1\n")
	const ranks = 20_000
	for i := range ranks {
		fmt.Fprintf(&b, "sonde_producer_ring_records{engine=\"e\",rank=\"%d\"} %d\n", i, i)
		fmt.Fprintf(&b, "sonde_producer_rows_total{engine=\"e\",rank=\"%d\",class=\"acknowledged\"} %d\n", i, i)
		fmt.Fprintf(&b, "sonde_detector_ready{detector=\"%d\"} 1\n", i)
	}
	s, v := at(t, 1, b.String()), &View{}
	v.add("a", window{old: &scrape{at: time.Unix(0, 0)}, now: s})
	v.sort()
	if len(v.Ranks) != ranks || len(v.Detectors) != ranks || v.Ranks[0].RowsPerS != ranks-1 {
		t.Errorf("%d ranks, %d detectors, %+v", len(v.Ranks), len(v.Detectors), v.Ranks[0])
	}
}

// process is a fake of sonde run.
func process(t *testing.T, ready string) string {
	moment := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/metrics":
			moment++
			_, _ = io.WriteString(w, pipelineText(moment))
		case "/readyz":
			if ready != "ready" {
				http.Error(w, ready, http.StatusServiceUnavailable)
			}
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestOnceShowsAllProcessesAndWhatTheyWaitFor(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	var out bytes.Buffer
	err := Top(t.Context(), Options{URLs: []string{process(t, "ready"), process(t, "bus: away\ndetector: \x1b[2Jx"),
		gone.URL, other.URL}, Once: true, JSON: true, Interval: 10 * time.Millisecond, Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	var v View
	if err := json.Unmarshal(out.Bytes(), &v); err != nil || strings.Count(out.String(), "\n") != 1 {
		t.Fatalf("%v in %s", err, out.String())
	}
	p := v.Processes
	if len(p) != 4 || !*p[0].Ready || *p[1].Ready || len(p[1].Missing) != 2 || p[1].Missing[0] != "bus: away" ||
		!strings.Contains(p[2].Error, "refused") || !strings.Contains(p[3].Error, "404") {
		t.Errorf("processes: %+v", p)
	}
	if len(v.Ranks) != 4 || v.Ledger.InFlight != 24 || v.Ranks[0].RowsPerS <= 0 {
		t.Errorf("view: %s", out.String())
	}
}

func TestNoAnswerAtAllIsAFailureOfScripts(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	var out bytes.Buffer
	o := Options{URLs: []string{gone.URL}, Once: true, Interval: 10 * time.Millisecond, Out: &out}
	if err := Top(t.Context(), o); err == nil || !strings.Contains(out.String(), "UNREACHABLE") {
		t.Errorf("got %v and %q", err, out.String())
	}
}

// redraws ends the view after some of them.
type redraws struct {
	text bytes.Buffer
	left int
	end  context.CancelFunc
}

func (w *redraws) Write(p []byte) (int, error) {
	if w.left--; w.left == 0 {
		w.end()
	}
	return w.text.Write(p)
}

func TestAScreenIsRedrawnUntilTheUserEndsIt(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {0, 0}, {1, 1}, {20, 2}} {
		ctx, cancel := context.WithCancel(t.Context())
		out := &redraws{left: 3, end: cancel}
		err := Top(ctx, Options{URLs: []string{process(t, "ready")}, Interval: 5 * time.Millisecond, Out: out,
			Screen: func() (int, int) { return size[0], size[1] }})
		cancel()
		if err != nil || strings.Count(out.text.String(), "\x1b[H") != 3 {
			t.Errorf("%v: %v, %d redraws", size, err, strings.Count(out.text.String(), "\x1b[H"))
		}
	}
}

func TestAddresses(t *testing.T) {
	for give, want := range map[string]string{"http://127.0.0.1:9464": "http://127.0.0.1:9464",
		"http://h:1/metrics": "http://h:1", "https://h/": "https://h", "127.0.0.1:9464": "", "ftp://h": "", "http://": "",
		"http://h/?a": "", "": "", "http://h:1/prefix": "http://h:1/prefix"} {
		got, err := Base(give)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: got %q, %v", give, got, err)
		}
	}
}
