package server

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash/fnv"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"sonde/engine/scheduler"
	"sonde/ring2"
)

// Bounds of a request; beyond one, the answer is an error of 400 or 413.
const (
	maxBodyBytes   = 1 << 20
	maxIDBytes     = 128 // request_id, adapter, trace_parent
	maxTenantBytes = 64
	maxLabels      = 16
	maxLabelKey    = 64
	maxLabelValue  = 256
	maxStops       = 4
	maxStopBytes   = 256
	bodyTimeout    = 30 * time.Second
	defaultTokens  = 16 // as OpenAI's
	defaultTenant  = "default"
)

// completion is the body of a request.
type completion struct {
	Model         string          `json:"model"`
	Prompt        json.RawMessage `json:"prompt"`
	MaxTokens     *int            `json:"max_tokens"`
	Temperature   *float64        `json:"temperature"`
	TopP          *float64        `json:"top_p"`
	N             *int            `json:"n"`
	Seed          json.RawMessage `json:"seed"`
	Stop          json.RawMessage `json:"stop"`
	Stream        bool            `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	User  string `json:"user"`
	Sonde extras `json:"sonde"`

	// Parameters that are accepted only where they ask for nothing.
	BestOf           *int               `json:"best_of"`
	Echo             bool               `json:"echo"`
	Logprobs         *int               `json:"logprobs"`
	Suffix           string             `json:"suffix"`
	PresencePenalty  float64            `json:"presence_penalty"`
	FrequencyPenalty float64            `json:"frequency_penalty"`
	LogitBias        map[string]float64 `json:"logit_bias"`
}

// extras is what the dataset should say about a request.
type extras struct {
	RequestID   string            `json:"request_id"`
	Tenant      string            `json:"tenant"`
	Adapter     string            `json:"adapter"`
	Labels      map[string]string `json:"labels"`
	OptIn       bool              `json:"opt_in"`
	TraceParent string            `json:"trace_parent"`
}

// readJSON reads a body of one JSON value into v.
func readJSON(w http.ResponseWriter, r *http.Request, v any) *failure {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout)) // Not every connection has deadlines.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	_ = control.SetReadDeadline(time.Time{})
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return &failure{status: http.StatusRequestEntityTooLarge, kind: kindInvalid,
			message: "the body is larger than " + strconv.Itoa(maxBodyBytes) + " bytes"}
	}
	if err != nil {
		return invalid("", "read the body: %v", err)
	}
	return parseJSON(body, v)
}

// parseJSON is strict: one value, with fields that are known.
func parseJSON(body []byte, v any) *failure {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return invalid("", "read the body as JSON: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return invalid("", "the body holds more than one JSON value")
	}
	return nil
}

// request checks a completion and makes the scheduler's request of it.
func (s *server) request(c *completion) (scheduler.Request, *failure) {
	var out scheduler.Request
	if f := c.refuse(s.o.Info.Name); f != nil {
		return out, f
	}
	out = scheduler.Request{ID: c.Sonde.RequestID, Tenant: c.Sonde.Tenant, Adapter: c.Sonde.Adapter,
		TraceParent: c.Sonde.TraceParent, OptIn: c.Sonde.OptIn, Samples: either(c.N, 1),
		MaxTokens: either(c.MaxTokens, defaultTokens),
		Sampling:  scheduler.Sampling{Temperature: either(c.Temperature, 1), TopP: either(c.TopP, 1)}}
	if out.ID == "" {
		out.ID = "cmpl-" + randomHex()
	}
	if out.Tenant == "" {
		out.Tenant = defaultTenant
	}
	var f *failure
	if out.Labels, f = c.Sonde.labels(); f != nil {
		return out, f
	}
	if out.Prompt, f = s.prompt(c.Prompt); f != nil {
		return out, f
	}
	if out.Stop, f = stops(c.Stop); f != nil {
		return out, f
	}
	out.Sampling.Seed, f = s.seed(c.Seed, out.ID)
	return out, f
}

// refuse refuses what is not served, and names that cannot be recorded.
func (c *completion) refuse(model string) *failure {
	switch {
	case c.Model != "" && c.Model != model:
		f := invalid("model", "model %q does not exist; this engine runs %q", c.Model, model)
		f.status, f.code = http.StatusNotFound, "model_not_found"
		return f
	case c.BestOf != nil && *c.BestOf != either(c.N, 1):
		return invalid("best_of", "best_of is not served; leave it out or equal to n")
	case c.Echo:
		return invalid("echo", "echo is not served")
	case c.Logprobs != nil:
		return invalid("logprobs", "logprobs is not served: hook final_logits has them")
	case c.Suffix != "":
		return invalid("suffix", "suffix is not served")
	case c.PresencePenalty != 0 || c.FrequencyPenalty != 0:
		return invalid("presence_penalty", "penalties are not served")
	case len(c.LogitBias) > 0:
		return invalid("logit_bias", "logit_bias is not served")
	}
	for _, text := range []struct {
		param, value string
		limit        int
	}{{"sonde.request_id", c.Sonde.RequestID, maxIDBytes}, {"sonde.tenant", c.Sonde.Tenant, maxTenantBytes},
		{"sonde.adapter", c.Sonde.Adapter, maxIDBytes}, {"sonde.trace_parent", c.Sonde.TraceParent, maxIDBytes}} {
		if len(text.value) > text.limit || !visible(text.value) {
			return invalid(text.param, "%s must be at most %d visible ASCII characters", text.param, text.limit)
		}
	}
	return nil
}

// visible says whether a text holds visible ASCII alone.
func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// labels are in the order of their keys.
func (e *extras) labels() ([]ring2.Label, *failure) {
	if len(e.Labels) > maxLabels {
		return nil, invalid("sonde.labels", "%d labels; at most %d", len(e.Labels), maxLabels)
	}
	var out []ring2.Label
	for k, v := range e.Labels {
		if k == "" || len(k) > maxLabelKey || !visible(k) {
			return nil, invalid("sonde.labels", "a label's key must be 1 to %d visible ASCII characters", maxLabelKey)
		}
		if len(v) > maxLabelValue || !printable(v) {
			return nil, invalid("sonde.labels", "label %q: its value must be printable and at most %d bytes", k, maxLabelValue)
		}
		out = append(out, ring2.Label{Key: k, Value: v})
	}
	slices.SortFunc(out, func(a, b ring2.Label) int {
		if a.Key < b.Key {
			return -1
		}
		return 1
	})
	return out, nil
}

func printable(s string) bool {
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return utf8.ValidString(s)
}

// prompt is a text or a list of token ids.
func (s *server) prompt(raw json.RawMessage) ([]int32, *failure) {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return s.o.Tokenizer.Encode(text), nil
	}
	var ids []int32
	if err := json.Unmarshal(raw, &ids); err != nil || bytes.Contains(raw, []byte("null")) {
		return nil, invalid("prompt", "prompt must be one text or one list of token ids")
	}
	return ids, nil
}

// stops is null, one text or a list of texts.
func stops(raw json.RawMessage) ([]string, *failure) {
	var one *string
	var list []string
	if len(raw) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(raw, &one); err == nil {
		if one == nil {
			return nil, nil
		}
		list = []string{*one}
	} else if err := json.Unmarshal(raw, &list); err != nil {
		return nil, invalid("stop", "stop must be a text or a list of texts")
	}
	if len(list) > maxStops {
		return nil, invalid("stop", "%d stop strings; at most %d", len(list), maxStops)
	}
	for _, text := range list {
		if text == "" || len(text) > maxStopBytes {
			return nil, invalid("stop", "a stop string must have 1 to %d bytes", maxStopBytes)
		}
	}
	return list, nil
}

// seed is the request's, an integer of 64 bits with or without a sign. A request
// without one gets a seed of its own by the engine's seed and its id.
func (s *server) seed(raw json.RawMessage, id string) (uint64, *failure) {
	if len(raw) == 0 || string(raw) == "null" {
		h := fnv.New64a()
		_, _ = h.Write(strconv.AppendUint(nil, s.o.Seed, 10))
		_, _ = h.Write([]byte(" " + id))
		return h.Sum64(), nil
	}
	if v, err := strconv.ParseUint(string(raw), 10, 64); err == nil {
		return v, nil
	}
	v, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return 0, invalid("seed", "seed must be an integer of 64 bits")
	}
	return uint64(v), nil
}

func either[T any](v *T, otherwise T) T {
	if v == nil {
		return otherwise
	}
	return *v
}

func randomHex() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // It never fails: crypto/rand ends the process instead.
	return hex.EncodeToString(b[:])
}
