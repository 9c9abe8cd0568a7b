package server

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/engine/arithmetic"
	"sonde/engine/capture"
	"sonde/engine/scheduler"
)

type rig struct {
	*httptest.Server
	scheduler *scheduler.Scheduler
	registry  *prometheus.Registry
	stop      context.CancelFunc
	done      chan error
}

func newRig(t *testing.T, change func(*scheduler.Options)) *rig {
	t.Helper()
	m := arithmetic.New(arithmetic.Options{Layers: 1})
	selection, err := capture.Select(m, nil)
	if err != nil {
		t.Fatal(err)
	}
	recorder, err := capture.New(selection, nil, nil, "test")
	if err != nil {
		t.Fatal(err)
	}
	g := &rig{registry: prometheus.NewRegistry(), done: make(chan error, 1)}
	quiet := slog.New(slog.DiscardHandler)
	o := scheduler.Options{Model: m, Tokenizer: arithmetic.Tokenizer{}, Recorder: recorder, Epoch: 7, Blocks: 512,
		BlockTokens: 16, PrefillChunk: 64, MaxBatch: 8, MaxOpen: 100, PrefixCache: true, Registerer: g.registry,
		Logger: quiet}
	if change != nil {
		change(&o)
	}
	if g.scheduler, err = scheduler.New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	go func() { g.done <- g.scheduler.Run(ctx) }()
	g.Server = httptest.NewServer(New(Options{Scheduler: g.scheduler, Info: m.Info(), Tokenizer: arithmetic.Tokenizer{},
		Seed: 1, Gatherer: g.registry, Logger: quiet}))
	t.Cleanup(func() {
		cancel()
		g.Close()
	})
	return g
}

func (g *rig) post(t *testing.T, path, body string) (int, string, http.Header) {
	t.Helper()
	resp, err := http.Post(g.URL+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

func (g *rig) get(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get(g.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// metric waits until a series has a value of at least want.
func (g *rig) metric(t *testing.T, series string, want float64) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		_, text := g.get(t, "/metrics")
		for line := range strings.Lines(text) {
			var v float64
			if rest, ok := strings.CutPrefix(line, series+" "); ok {
				if _, err := fmt.Sscan(rest, &v); err == nil && v >= want {
					return
				}
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s never reached %v", series, want)
		}
	}
}

const example = `{"prompt":[1,2,3],"max_tokens":12,"n":2,"seed":5,"temperature":0.9,"stream":%v,
	"stream_options":{"include_usage":true},"sonde":{"request_id":"r","tenant":"t","labels":{"a":"b"},"opt_in":true}}`

// A client that was written for OpenAI must find what it looks for.
func TestWholeAnswerHasTheFormThatClientsExpect(t *testing.T) {
	g := newRig(t, nil)
	status, text, _ := g.post(t, "/v1/completions", fmt.Sprintf(example, false))
	var r struct {
		ID, Object, Model string
		Created           int64
		Choices           []struct {
			Index        *int
			Text         string
			FinishReason string `json:"finish_reason"`
		}
		Usage usage
		Sonde ids
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil || status != 200 {
		t.Fatalf("%d %s: %v", status, text, err)
	}
	if r.Object != "text_completion" || r.Model != "arithmetic" || r.Created == 0 || len(r.Choices) != 2 ||
		r.Sonde.RequestID != "r" || len(r.Sonde.EngineID) != 32 || r.ID != "cmpl-"+r.Sonde.EngineID {
		t.Errorf("answered %s", text)
	}
	tokens := 0
	for i, c := range r.Choices {
		tokens += strings.Count(c.Text, " ")
		if *c.Index != i || c.FinishReason != "length" && c.FinishReason != "stop" || c.Text == "" {
			t.Errorf("choice %d: %+v", i, c)
		}
	}
	if r.Usage.Prompt != 3 || r.Usage.Completion < tokens || r.Usage.Total != 3+r.Usage.Completion {
		t.Errorf("usage %+v for %d tokens", r.Usage, tokens)
	}
}

// A stream must say the same as a whole answer, in well-formed events.
func TestStreamSaysTheSameAsAWholeAnswer(t *testing.T) {
	g := newRig(t, nil)
	_, whole, _ := g.post(t, "/v1/completions", fmt.Sprintf(example, false))
	status, text, header := g.post(t, "/v1/completions", fmt.Sprintf(example, true))
	if status != 200 || header.Get("Content-Type") != "text/event-stream" ||
		!strings.HasSuffix(text, "\n\ndata: [DONE]\n\n") {
		t.Fatalf("%d %v %q", status, header, text)
	}
	var got, want reply
	if err := json.Unmarshal([]byte(whole), &want); err != nil {
		t.Fatal(err)
	}
	texts, finished, pieces := map[int]string{}, map[int]string{}, 0
	for _, e := range strings.Split(strings.TrimSuffix(text, "\n\n"), "\n\n") {
		data, ok := strings.CutPrefix(e, "data: ")
		if !ok || strings.Contains(data, "\n") {
			t.Fatalf("event %q", e)
		}
		if data == "[DONE]" {
			continue
		}
		got = reply{}
		if err := json.Unmarshal([]byte(data), &got); err != nil {
			t.Fatalf("event %q: %v", e, err)
		}
		if !strings.Contains(data, `"finish_reason":null`) && len(got.Choices) > 0 && got.Choices[0].FinishReason == nil {
			t.Errorf("event %q has no finish_reason", e)
		}
		for _, c := range got.Choices {
			if _, over := finished[c.Index]; over {
				t.Errorf("sample %d goes on after its end", c.Index)
			}
			texts[c.Index] += c.Text
			if c.FinishReason != nil {
				finished[c.Index] = *c.FinishReason
			}
			pieces++
		}
	}
	if len(got.Choices) != 0 || got.Usage == nil || *got.Usage != *want.Usage {
		t.Errorf("the last piece is %+v, the usage of the whole answer %+v", got, want.Usage)
	}
	for _, c := range want.Choices {
		if texts[c.Index] != c.Text || finished[c.Index] != *c.FinishReason {
			t.Errorf("sample %d: streamed %q %q, whole %q %q", c.Index, texts[c.Index], finished[c.Index], c.Text,
				*c.FinishReason)
		}
	}
	if pieces < 10 {
		t.Errorf("only %d pieces: nothing was streamed", pieces)
	}
}

// hostile are bodies by what is wrong with them, with the status of the answer.
var hostile = map[string]struct {
	status int
	body   string
}{
	"empty":               {400, ``},
	"no JSON":             {400, `hello`},
	"cut":                 {400, `{"prompt":"a"`},
	"deep":                {400, `{"prompt":` + strings.Repeat("[", 100000)},
	"two values":          {400, `{"prompt":"a"}{"prompt":"b"}`},
	"array":               {400, `[]`},
	"unknown field":       {400, `{"prompt":"a","promt":"b"}`},
	"unknown extra":       {400, `{"prompt":"a","sonde":{"request":"x"}}`},
	"huge":                {413, `{"prompt":"` + strings.Repeat("a", 1<<20) + `"}`},
	"no prompt":           {400, `{}`},
	"null prompt":         {400, `{"prompt":null}`},
	"empty prompt":        {400, `{"prompt":""}`},
	"prompts":             {400, `{"prompt":["a","b"]}`},
	"float ids":           {400, `{"prompt":[1.5]}`},
	"null id":             {400, `{"prompt":[1,null]}`},
	"wide id":             {400, `{"prompt":[4294967297]}`},
	"negative id":         {400, `{"prompt":[-1]}`},
	"id above":            {400, `{"prompt":[512]}`},
	"long prompt":         {400, `{"prompt":"` + strings.Repeat("a", 5000) + `"}`},
	"no tokens":           {400, `{"prompt":"a","max_tokens":0}`},
	"negative tokens":     {400, `{"prompt":"a","max_tokens":-5}`},
	"float tokens":        {400, `{"prompt":"a","max_tokens":1.5}`},
	"wide tokens":         {400, `{"prompt":"a","max_tokens":1e99}`},
	"cold":                {400, `{"prompt":"a","temperature":-1}`},
	"hot":                 {400, `{"prompt":"a","temperature":1e300}`},
	"top_p":               {400, `{"prompt":"a","top_p":1.1}`},
	"n":                   {400, `{"prompt":"a","n":0}`},
	"many":                {400, `{"prompt":"a","n":9}`},
	"seed":                {400, `{"prompt":"a","seed":"x"}`},
	"wide seed":           {400, `{"prompt":"a","seed":18446744073709551616}`},
	"empty stop":          {400, `{"prompt":"a","stop":""}`},
	"stops":               {400, `{"prompt":"a","stop":["1","2","3","4","5"]}`},
	"stop of numbers":     {400, `{"prompt":"a","stop":[1]}`},
	"model":               {404, `{"prompt":"a","model":"gpt-5"}`},
	"best_of":             {400, `{"prompt":"a","best_of":3}`},
	"echo":                {400, `{"prompt":"a","echo":true}`},
	"logprobs":            {400, `{"prompt":"a","logprobs":1}`},
	"suffix":              {400, `{"prompt":"a","suffix":"z"}`},
	"penalty":             {400, `{"prompt":"a","frequency_penalty":0.1}`},
	"bias":                {400, `{"prompt":"a","logit_bias":{"5":1}}`},
	"blank in id":         {400, `{"prompt":"a","sonde":{"request_id":"a b"}}`},
	"control in tenant":   {400, `{"prompt":"a","sonde":{"tenant":"a\u0000"}}`},
	"long id":             {400, `{"prompt":"a","sonde":{"request_id":"` + strings.Repeat("x", 129) + `"}}`},
	"label":               {400, `{"prompt":"a","sonde":{"labels":{"":"v"}}}`},
	"label value":         {400, `{"prompt":"a","sonde":{"labels":{"k":"a\nb"}}}`},
	"label of a number":   {400, `{"prompt":"a","sonde":{"labels":{"k":1}}}`},
	"labels":              {400, `{"prompt":"a","sonde":{"labels":{` + manyLabels(17) + `}}}`},
	"text for a flag":     {400, `{"prompt":"a","stream":"yes"}`},
	"number for the rest": {400, `{"prompt":"a","sonde":5}`},
}

// A hostile or mistaken body must get a sentence, and never reach the scheduler.
func TestHostileBodiesAreRefusedInOpenAIsForm(t *testing.T) {
	g := newRig(t, nil)
	for name, c := range hostile {
		status, text, header := g.post(t, "/v1/completions", c.body)
		var f struct {
			Error *struct {
				Message, Type string
				Param, Code   *string
			}
		}
		err := json.Unmarshal([]byte(text), &f)
		if status != c.status || err != nil || f.Error == nil || f.Error.Message == "" || f.Error.Type != kindInvalid ||
			header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %.200s", name, status, text)
		}
	}
	for _, body := range []string{`{"prompt":"a","seed":-3,"stop":null,"best_of":1,"user":"u","echo":false}`,
		`{"prompt":"a","seed":18446744073709551615,"stop":"zzz","logprobs":null,"model":"arithmetic"}`,
		`{"prompt":[5],"stop":["1","2"],"max_tokens":100000,"temperature":0}`} {
		if status, text, _ := g.post(t, "/v1/completions", body); status != 200 {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
}

func manyLabels(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `%s"k%d":"v"`, []string{"", ","}[min(i, 1)], i)
	}
	return b.String()
}

func TestSameSeedSaysTheSame(t *testing.T) {
	g := newRig(t, nil)
	say := func(extra string) string {
		_, text, _ := g.post(t, "/v1/completions", `{"prompt":"abc","max_tokens":8`+extra+`}`)
		var r reply
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			t.Fatal(err)
		}
		return r.Choices[0].Text
	}
	if a, b := say(`,"seed":1`), say(`,"seed":1`); a != b {
		t.Errorf("%q and %q", a, b)
	}
	if a, b := say(`,"sonde":{"request_id":"x"}`), say(`,"sonde":{"request_id":"x"}`); a != b {
		t.Errorf("without a seed, by id: %q and %q", a, b)
	}
	if a, b := say(``), say(``); a == b {
		t.Errorf("without seed and id, twice %q", a)
	}
}

// slow keeps requests running long enough to be interrupted.
func slow(o *scheduler.Options) { o.StepDelay = 2 * time.Millisecond }

const long = `{"prompt":"a","max_tokens":4000,"stream":%v,"sonde":{"request_id":"%s"},"n":2}`

// A client that is gone must not keep the engine busy.
func TestClientThatLeavesEndsItsRequest(t *testing.T) {
	for _, stream := range []bool{true, false} {
		g := newRig(t, slow)
		ctx, leave := context.WithCancel(context.Background())
		body := fmt.Sprintf(long, stream, "r")
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, g.URL+"/v1/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		left := make(chan error, 1)
		go func() {
			resp, err := http.DefaultClient.Do(req)
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			left <- err
		}()
		g.metric(t, `sonde_engine_tokens_total{phase="decode"}`, 4)
		leave()
		if err := <-left; err == nil {
			t.Error("the answer was complete before the client left")
		}
		g.metric(t, `sonde_engine_requests_total{reason="disconnect"}`, 2)
	}
}

func TestAbortEndsAStreamWithItsReason(t *testing.T) {
	g := newRig(t, slow)
	resp, err := http.Post(g.URL+"/v1/completions", "", strings.NewReader(fmt.Sprintf(long, true, "r")))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Scan()
	if status, text, _ := g.post(t, "/v1/completions", fmt.Sprintf(long, false, "r")); status != 409 {
		t.Errorf("second request of the id: %d %s", status, text)
	}
	for sample, want := range map[int]string{5: "unknown", 0: "stopped"} {
		_, text, _ := g.post(t, "/v1/abort", fmt.Sprintf(`{"request_id":"r","sample":%d}`, sample))
		if !strings.Contains(text, `"outcome":"`+want+`"`) {
			t.Errorf("abort of sample %d: %s", sample, text)
		}
	}
	_, first, _ := g.post(t, "/v1/abort", `{"request_id":"r"}`)
	_, again, _ := g.post(t, "/v1/abort", `{"request_id":"r"}`)
	var a, b struct {
		Outcome string
		Length  int `json:"final_length"`
	}
	if json.Unmarshal([]byte(first), &a) != nil || json.Unmarshal([]byte(again), &b) != nil || a.Outcome != "stopped" ||
		b.Outcome != "finished" || a.Length < 2 || a.Length != b.Length {
		t.Errorf("aborted: %s, again: %s", first, again)
	}
	text := ""
	for lines.Scan() {
		text += lines.Text()
	}
	if strings.Count(text, `"finish_reason":"abort"`) != 2 || !strings.HasSuffix(text, "data: [DONE]") {
		t.Errorf("the stream ended with %.300s", text[max(0, len(text)-300):])
	}
	for body, want := range map[string]int{`{}`: 400, `{"request_id":"r","sample":-1}`: 400, `x`: 400,
		`{"request_id":"zz"}`: 200} {
		if status, text, _ := g.post(t, "/v1/abort", body); status != want {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
}

func TestFullAndStoppingEnginesSaySo(t *testing.T) {
	g := newRig(t, func(o *scheduler.Options) { o.StepDelay, o.MaxOpen, o.DrainLimit = time.Millisecond, 2, time.Minute })
	if status, text := g.get(t, "/healthz"); status != 200 || text != "ok\n" {
		t.Errorf("health: %d %s", status, text)
	}
	done := make(chan string, 1)
	go func() {
		resp, err := http.Post(g.URL+"/v1/completions", "", strings.NewReader(fmt.Sprintf(long, false, "r")))
		if err != nil {
			done <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body) // An error shows as a text without a reason.
		done <- string(text)
	}()
	g.metric(t, `sonde_engine_tokens_total{phase="decode"}`, 1)
	if status, text, h := g.post(t, "/v1/completions", `{"prompt":"a"}`); status != 429 || h.Get("Retry-After") == "" {
		t.Errorf("full: %d %s", status, text)
	}
	g.stop()
	for deadline := time.Now().Add(10 * time.Second); !g.scheduler.Stopping() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if status, text, _ := g.post(t, "/v1/completions", `{"prompt":"a"}`); status != 503 {
		t.Errorf("stopping: %d %s", status, text)
	}
	if status, _ := g.get(t, "/healthz"); status != 503 {
		t.Errorf("stopping: health %d", status)
	}
	g.scheduler.Abort("r", -1)
	if text := <-done; strings.Count(text, `"finish_reason":"abort"`) != 2 {
		t.Errorf("aborted while stopping: %s", text)
	}
}

func TestModelsAndUnknownPaths(t *testing.T) {
	g := newRig(t, nil)
	if status, text := g.get(t, "/v1/models"); status != 200 || !strings.Contains(text, `"id":"arithmetic"`) ||
		!strings.Contains(text, `"max_model_len":4096`) {
		t.Errorf("%d %s", status, text)
	}
	for _, path := range []string{"/", "/v1/completions", "/v1/chat/completions", "/../etc"} {
		if status, text := g.get(t, path); status != 404 || !strings.Contains(text, kindInvalid) {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
}

// Whatever a body holds, the answer is one of those that are documented, and what is
// let in is within the bounds. No HTTP is in the way: the fuzzer's time is for bodies.
func FuzzCompletion(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(example, false)))
	f.Add([]byte(`{"prompt":"a","stop":["x"],"seed":-1,"top_p":0.5}`))
	f.Add([]byte(`{"prompt":[1,2],"n":2,"stop":"x","sonde":{"tenant":"t","labels":{"k":"v"},"request_id":"r"}}`))
	m := arithmetic.New(arithmetic.Options{Layers: 1})
	s := &server{o: Options{Info: m.Info(), Tokenizer: arithmetic.Tokenizer{}}}
	f.Fuzz(func(t *testing.T, body []byte) {
		var c completion
		failed := parseJSON(body, &c)
		if failed == nil {
			var r scheduler.Request
			if r, failed = s.request(&c); failed == nil {
				checkLetIn(t, &r)
				return
			}
		}
		if failed.message == "" || failed.status < 400 || failed.status > 499 {
			t.Errorf("failed with %+v", failed)
		}
	})
}

func checkLetIn(t *testing.T, r *scheduler.Request) {
	ok := r.ID != "" && len(r.ID) <= maxIDBytes && visible(r.ID) && r.Tenant != "" && len(r.Tenant) <= maxTenantBytes &&
		visible(r.Tenant) && len(r.Adapter) <= maxIDBytes && len(r.TraceParent) <= maxIDBytes &&
		len(r.Labels) <= maxLabels && len(r.Stop) <= maxStops
	for i, l := range r.Labels {
		ok = ok && l.Key != "" && len(l.Key) <= maxLabelKey && len(l.Value) <= maxLabelValue && utf8.ValidString(l.Value) &&
			(i == 0 || r.Labels[i-1].Key < l.Key)
	}
	for _, stop := range r.Stop {
		ok = ok && stop != "" && len(stop) <= maxStopBytes
	}
	if !ok {
		t.Errorf("let in %+v", r)
	}
}
