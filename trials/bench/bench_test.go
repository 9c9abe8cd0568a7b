package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sonde/internal/notrun"
	"sonde/schema"
	"sonde/trials/fleet"
)

func TestMediansOfOddAndEvenNumbers(t *testing.T) {
	for _, c := range []struct {
		figures []float64
		want    float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}, {[]float64{1, 1, 100}, 1}} {
		before := append([]float64(nil), c.figures...)
		if got := median(c.figures); got != c.want {
			t.Errorf("median of %v is %v, want %v", before, got, c.want)
		}
		for i := range before {
			if c.figures[i] != before[i] {
				t.Errorf("median reordered %v", before)
			}
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v", got)
	}
}

// A ratio is of one round: the machine is slow for both of its arms or for none.
func TestRatiosAreTakenRoundByRound(t *testing.T) {
	r := rounds{"ours": {{seconds: 1, cpu: 2}, {seconds: 10, cpu: 3}, {seconds: 2, cpu: 8}},
		"bare":  {{seconds: 2, cpu: 1}, {seconds: 5, cpu: 1}, {seconds: 8, cpu: 4}},
		"again": {{seconds: 2, cpu: 1}, {seconds: 4, cpu: 1}, {seconds: 10, cpu: 4}}}
	if got, want := r.speed("ours", "bare"), (spread{2, 0.5, 4}); got != want {
		t.Errorf("speed %v, want %v", got, want)
	}
	if got, want := r.cpu("ours", "bare"), (spread{2, 2, 3}); got != want {
		t.Errorf("CPU %v, want %v", got, want)
	}
	if got := r.noise("bare", "again"); math.Abs(got-0.2) > 1e-9 { // off by 0, 25 and 20 %
		t.Errorf("noise %v, want 0.2", got)
	}
	if got, want := r.rate("ours", 10), (spread{5, 1, 10}); got != want {
		t.Errorf("rate %v, want %v", got, want)
	}
	if got, want := r.cores("ours"), (spread{2, 0.3, 4}); got != want {
		t.Errorf("cores %v, want %v", got, want)
	}
}

func TestAMissedAimIsSaid(t *testing.T) {
	f := figure{ID: "x", spread: spread{0.75, 0.7, 0.9}}
	for _, c := range []struct {
		f    figure
		met  bool
		says string
	}{
		{f.atLeast(0.75), true, "0.75 [0.70..0.90]  >= 0.75: PASS"},
		{f.atLeast(0.8), false, "0.75 [0.70..0.90]  >= 0.80: short by 0.05"},
		{f.atMost(0.72), false, "0.75 [0.70..0.90]  <= 0.72: over by 0.03"},
		{f.atMost(0.8), true, "0.75 [0.70..0.90]  <= 0.80: PASS"},
	} {
		if got := judged(c.f); got != c.says || c.f.Aim.Met != c.met {
			t.Errorf("%q, met %v; want %q", got, c.f.Aim.Met, c.says)
		}
	}
	never := figure{ID: "y", spread: spreadOf(nil)}.atLeast(1)
	s := summary([]*section{{figures: []figure{f, f.atLeast(0.5), f.atLeast(0.8), never}}})
	if s != "1 of 3 aims met; missed: x short by 0.05, y NOT MEASURED" {
		t.Errorf("%q", s)
	}
}

// Each arm runs once a round, in orders that differ, and a first round is not
// counted.
func TestArmsTakeTurns(t *testing.T) {
	var order []string
	one := func(name string) arm {
		return arm{name, func(context.Context) (sample, error) {
			order = append(order, name)
			return sample{seconds: float64(len(order))}, nil
		}}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const runs = 40
	r, err := interleave(context.Background(), rand.New(rand.NewPCG(seed, 1)), runs, func(int) {}, one("a"), one("b"))
	if err != nil {
		t.Fatal(err)
	}
	if len(r["a"]) != runs || len(r["b"]) != runs || len(order) != 2*(runs+1) {
		t.Fatalf("%d and %d samples of %d runs", len(r["a"]), len(r["b"]), len(order))
	}
	first := map[string]int{}
	for i := 0; i < len(order); i += 2 {
		if order[i] == order[i+1] {
			t.Fatalf("%s ran twice in round %d", order[i], i/2)
		}
		first[order[i]]++
	}
	if first["a"] == 0 || first["b"] == 0 {
		t.Errorf("the order never changed: %v", first)
	}
	if r["a"][0].seconds < 3 {
		t.Error("the round that warms up was counted")
	}
}

func TestQuantilesOfAHistogram(t *testing.T) {
	text := `# TYPE sonde_detector_tensor_to_verdict_seconds histogram
sonde_detector_tensor_to_verdict_seconds_bucket{detector="german",le="0.001"} 50
sonde_detector_tensor_to_verdict_seconds_bucket{detector="german",le="0.002"} 99
sonde_detector_tensor_to_verdict_seconds_bucket{detector="german",le="0.004"} 100
sonde_detector_tensor_to_verdict_seconds_bucket{detector="german",le="+Inf"} 100
sonde_detector_tensor_to_verdict_seconds_sum{detector="german"} 1
sonde_detector_tensor_to_verdict_seconds_count{detector="german"} 100
`
	l, err := parseLatencies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for q, want := range map[float64]float64{0.25: 0.5, 0.5: 1, 0.99: 2, 1: 4} {
		if got := l.quantile(q); math.Abs(got-want) > 1e-9 {
			t.Errorf("quantile %v is %v ms, want %v", q, got, want)
		}
	}
	none, err := parseLatencies(strings.NewReader(""))
	if err != nil || none.count() != 0 {
		t.Errorf("%v tokens without a histogram, %v", none.count(), err)
	}
	l.minus(none)
	l.minus(l)
	if l.count() != 0 || !math.IsNaN(l.quantile(0.5)) {
		t.Errorf("%v tokens are left", l.count())
	}
}

// What is written again must be what the model computed, in whole messages.
func TestMessagesOfACorpusHoldItsRows(t *testing.T) {
	c := randomCorpus(1 << 20)
	messages, subject, rows, err := c.messages(64 << 10)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, m := range messages {
		b, err := schema.Decode(m)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b.Len() {
			v := b.Vector(i)
			n := int(v.Seq-1)/2*16 + int(v.Row)
			want := c.data[b.Header.Layer][n*c.rowBytes():][:c.rowBytes()]
			if !bytes.Equal(v.Vec, want) || v.Request != requestName(c.tokens[n].sequence) {
				t.Fatalf("row %d of layer %d holds other bytes", n, b.Header.Layer)
			}
			seen++
		}
	}
	if seen != rows || rows == 0 || !strings.HasPrefix(subject, schema.SubjectPrefix) {
		t.Errorf("%d rows, told %d, to %q", seen, rows, subject)
	}
	for _, v := range []float32{0, 1, -1, 1.00390625, 3.3895314e38, float32(math.Inf(1))} {
		if got := math.Float32frombits(uint32(bf16(v)) << 16); math.Abs(float64(got-v)) > math.Abs(float64(v))/256 {
			t.Errorf("%v rounds to %v", v, got)
		}
	}
}

func TestWrongFlagsAreExplained(t *testing.T) {
	for _, c := range [][]string{{"-only", "ax"}, {"-runs", "0"}, {"now"}, {"-what"}} {
		var out, errors bytes.Buffer
		if code := run(context.Background(), c, &out, &errors); code != 2 || errors.Len() == 0 || out.Len() > 0 {
			t.Errorf("%v: exit code %d, %q", c, code, errors.String())
		}
	}
	var out, errors bytes.Buffer
	if code := run(context.Background(), []string{"-help"}, &out, &errors); code != 0 ||
		!strings.Contains(errors.String(), "tensor to verdict") {
		t.Errorf("-help: exit code %d, %q", code, errors.String())
	}
}

// A client that is only compared with must not come into the product by the back door.
func TestTheProductHoldsNoOtherClientOfKafka(t *testing.T) {
	list := exec.Command("go", "list", "-deps", "./cmd/sonde")
	list.Dir = "../.."
	packages, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	if text := string(packages); !strings.Contains(text, "sonde/bus") || strings.Contains(text, "franz-go") {
		t.Errorf("the product is made of %d packages, franz-go among them or no bus", strings.Count(text, "\n"))
	}
}

// The whole page with tiny sizes: every section measures, and the results can be
// read back.
func TestThePageIsMeasured(t *testing.T) {
	if testing.Short() {
		notrun.Mark(t, "-short")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(root) // the configurations name models and detectors
	dir, err := os.MkdirTemp("", "sb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	binary := filepath.Join(dir, "sonde")
	if text, err := exec.Command("go", "build", "-o", binary, "./cmd/sonde").CombinedOutput(); err != nil {
		t.Fatalf("build sonde: %v\n%s", err, text)
	}
	b := &bench{runs: 1, binary: binary, python: findPython(), model: "models/trilingual", dir: dir,
		rand: rand.New(rand.NewPCG(1, 1)), progress: fleet.NewProgressOn(os.Stderr),
		sizes: sizes{wireBytes: 2 << 20, growBytes: 1 << 20, kafkaBytes: 4 << 20, paced: 10,
			lakeBytes: 2 << 20, verdictFor: time.Second, fillSteps: 32, messageBytes: []int{64 << 10}}}
	var out bytes.Buffer
	results := filepath.Join(dir, "deep", "results.jsonl")
	if err := b.page(t.Context(), &out, "", results); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, p := range parts {
		if !strings.Contains(out.String(), "\n"+p.letter+". ") {
			t.Errorf("section %s is not on the page:\n%s", p.letter, out.String())
		}
	}
	line, err := os.ReadFile(results)
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(line, &r); err != nil || r.Machine.Cores == 0 || r.Commit == "" || len(r.Figures) < 30 {
		t.Errorf("%d figures, %v: %s", len(r.Figures), err, line)
	}
	for _, f := range r.Figures {
		if math.IsNaN(f.Median) || f.Median < 0 {
			t.Errorf("%s is %v", f.ID, f.Median)
		}
	}
}
