package ringtap

import (
	"fmt"
	"math"
	"strings"

	"sonde/producer"
	"sonde/ring2"
)

// maxDecode bounds the payload that is copied for its figures; of a larger one only
// the descriptor is shown.
const maxDecode = 64 << 20

// Filter chooses records. Zero fields choose everything.
type Filter struct {
	Hook    string // of captures: a name, or a pattern as in path.Match
	Layer   *int
	Request string // external id
}

func (f *Filter) empty() bool { return f.Hook == "" && f.Layer == nil && f.Request == "" }

// Record is one record as the tap shows it.
type Record struct {
	Type       string   `json:"type"` // "record"
	Epoch      string   `json:"epoch"`
	Rank       uint32   `json:"rank"`
	Seq        uint64   `json:"seq"`
	Kind       string   `json:"kind"` // "pending" for one that is not committed
	CapturedNS int64    `json:"captured_ns,omitempty"`
	Step       uint64   `json:"step"`
	Layout     uint32   `json:"layout,omitempty"`
	Rows       uint32   `json:"rows,omitempty"`
	Bytes      int      `json:"bytes"`
	Aborted    bool     `json:"aborted,omitempty"`
	Released   bool     `json:"released"` // the agent has it
	Requests   []string `json:"requests,omitempty"`
	Hooks      []string `json:"hooks,omitempty"` // hook/layer
	Text       string   `json:"text,omitempty"`
	Stats      []Stats  `json:"stats,omitempty"`

	captureNS uint64 // CLOCK_MONOTONIC; 0: unknown
}

// Stats are figures of the rows of one hook in a capture.
type Stats struct {
	Hook      string  `json:"hook"`
	Layer     int     `json:"layer"`
	DType     string  `json:"dtype"`
	Rows      int     `json:"rows"`
	L2Mean    float64 `json:"l2_mean"`
	L2Max     float64 `json:"l2_max"`
	AbsMax    float64 `json:"abs_max"`
	NonFinite int64   `json:"nonfinite"`
}

// describe turns a glance into what is shown, but for figures. wanted is false when
// the filter does not want it.
func (r *Ring) describe(g *ring2.Glance, f *Filter, release uint64) (out Record, wanted bool) {
	c := r.Config()
	out = Record{Type: "record", Epoch: fmt.Sprintf("%016x", c.Epoch), Rank: c.Rank, Seq: g.Seq, Kind: g.Kind.String(),
		CapturedNS: c.WallNS(g.CaptureNS), Step: g.Step, Layout: g.Layout, Rows: g.Rows, Bytes: g.Bytes,
		Aborted: g.Aborted(), Released: int64(g.Seq-release) < 0, captureNS: g.CaptureNS}
	if g.Kind == ring2.KindCapture {
		return out, r.capture(&out, g, f)
	}
	payload, sight := r.Payload(g, nil)
	if sight != ring2.SightWhole {
		out.Text = "overwritten"
		return out, f.empty()
	}
	r.known.learn(g.Kind, payload)
	return out, r.control(&out, g.Kind, payload, f)
}

// control fills in what a control record says.
func (r *Ring) control(out *Record, kind ring2.Kind, payload []byte, f *Filter) bool {
	number, named := uint64(0), false
	switch kind {
	case ring2.KindStep:
		step, err := ring2.ParseStep(payload)
		if err != nil {
			out.Text = err.Error()
			return f.empty()
		}
		out.Requests = r.requestsOf(&step, ^uint64(0))
		out.Text = stepText(&step)
		return f.Hook == "" && f.Layer == nil && wantsOne(f.Request, out.Requests)
	case ring2.KindLayout:
		if l, err := ring2.ParseLayout(payload); err == nil {
			out.Layout = l.ID
			for i := range l.Entries {
				if f.entryMatches(&l.Entries[i]) {
					out.Hooks = append(out.Hooks, hookText(&l.Entries[i]))
				}
			}
		}
		return f.Request == "" && len(out.Hooks) > 0
	case ring2.KindModel:
		out.Text = r.known.model
	case ring2.KindRequestOpen:
		if o, err := ring2.ParseRequestOpen(payload); err == nil {
			number, named = o.Number, true
			out.Text = fmt.Sprintf("sample %d, %d prompt tokens", o.Sample, o.PromptTokens)
		}
	case ring2.KindRequestEnd:
		if e, err := ring2.ParseRequestEnd(payload); err == nil {
			number, named = e.Number, true
			out.Text = fmt.Sprintf("%s after %d tokens", e.Reason, e.GeneratedTokens)
		}
	}
	if named {
		out.Requests = []string{r.requestName(number)}
	}
	return f.Hook == "" && f.Layer == nil && wantsOne(f.Request, out.Requests)
}

func wantsOne(request string, names []string) bool {
	if request == "" {
		return true
	}
	for _, n := range names {
		if n == request {
			return true
		}
	}
	return false
}

func (r *Ring) requestName(number uint64) string {
	if id, ok := r.known.requests[number]; ok && id != "" {
		return id
	}
	return fmt.Sprintf("#%d", number)
}

// requestsOf lists the requests that have rows in a step, in the layouts of a mask.
func (r *Ring) requestsOf(step *ring2.Step, mask uint64) []string {
	var out []string
	seen := map[string]bool{}
	for i := range step.Ranges {
		if name := r.requestName(step.Ranges[i].Number); step.Ranges[i].LayoutMask&mask != 0 && !seen[name] {
			seen[name] = true
			out = append(out, name)
		}
	}
	return out
}

func stepText(step *ring2.Step) string {
	tokens, dropped := 0, map[string]int{}
	for i := range step.Ranges {
		tokens += int(step.Ranges[i].Count)
	}
	text := fmt.Sprintf("%d tokens", tokens)
	for _, l := range step.Layouts {
		if l.Outcome != ring2.ReasonNone {
			dropped[l.Outcome.String()]++
		}
	}
	for reason, n := range dropped {
		text += fmt.Sprintf(", %d dropped: %s", n, reason)
	}
	return text
}

func hookText(e *ring2.LayoutEntry) string {
	if e.Layer < 0 {
		return e.Hook
	}
	return fmt.Sprintf("%s/%d", e.Hook, e.Layer)
}

// capture fills in what a capture holds, as far as its layout and its STEP are known.
func (r *Ring) capture(out *Record, g *ring2.Glance, f *Filter) bool {
	layout := r.known.layouts[g.Layout]
	if layout == nil {
		out.Text = "layout unknown"
		return f.empty()
	}
	for i := range layout.Entries {
		if f.entryMatches(&layout.Entries[i]) {
			out.Hooks = append(out.Hooks, hookText(&layout.Entries[i]))
		}
	}
	if len(out.Hooks) == 0 {
		return false
	}
	step, index := r.stepOf(g)
	if step == nil {
		out.Text = "step unknown"
		return f.Request == ""
	}
	out.Requests = r.requestsOf(step, 1<<index)
	return wantsOne(f.Request, out.Requests)
}

// decode adds the figures of the rows that the filter wants.
func (r *Ring) decode(out *Record, g *ring2.Glance, f *Filter) {
	layout := r.known.layouts[g.Layout]
	step, index := r.stepOf(g)
	if g.Kind != ring2.KindCapture || layout == nil || step == nil || g.Aborted() {
		return
	}
	if g.Bytes > maxDecode {
		out.Text = "too large for figures"
		return
	}
	payload, sight := r.Payload(g, nil)
	if sight != ring2.SightWhole {
		out.Text = "released before it was read"
		return
	}
	entries, err := ring2.SplitCapture(layout, step, index, payload)
	if err != nil {
		out.Text = err.Error()
		return
	}
	for i := range entries {
		if e := &layout.Entries[i]; f.entryMatches(e) {
			out.Stats = append(out.Stats, r.figures(e, &entries[i], step, index, f.Request))
		}
	}
}

// stepOf finds the STEP that announced a capture, which stands a few records before
// it, and which of its layouts that is.
func (r *Ring) stepOf(g *ring2.Glance) (*ring2.Step, int) {
	for back := uint64(1); back <= ring2.MaxStepLayouts && back <= g.Seq; back++ {
		s, sight := r.Look(g.Seq - back)
		if sight != ring2.SightWhole || s.Kind != ring2.KindStep {
			continue
		}
		payload, sight := r.Payload(&s, nil)
		step, err := ring2.ParseStep(payload)
		if sight != ring2.SightWhole || err != nil || step.Step != g.Step {
			return nil, 0
		}
		for i, l := range step.Layouts {
			if l.Outcome == ring2.ReasonNone && l.CaptureSeq == g.Seq {
				return &step, i
			}
		}
		return nil, 0
	}
	return nil, 0
}

// figures computes those of one entry's rows, of one request alone when it is named.
func (r *Ring) figures(e *ring2.LayoutEntry, rows *ring2.EntryRows, step *ring2.Step, layout int,
	request string) Stats {
	s := Stats{Hook: e.Hook, Layer: e.Layer, DType: e.DType.String()}
	at := 0
	for i := range step.Ranges {
		rg := &step.Ranges[i]
		n := int(rg.Count)
		switch {
		case rg.LayoutMask>>layout&1 == 0:
			continue
		case e.Select == ring2.SelectSampled && rg.Sampled:
			n = 1
		case e.Select == ring2.SelectSampled:
			continue
		}
		if request == "" || r.requestName(rg.Number) == request {
			for k := at; k < at+n && k < rows.Rows; k++ {
				s.add(rows.Row(k), e.DType)
			}
		}
		at += n
	}
	if s.Rows > 0 {
		s.L2Mean /= float64(s.Rows)
	}
	return s
}

func (s *Stats) add(row []byte, dtype ring2.DType) {
	f := producer.RowStats(row, dtype)
	s.Rows++
	l2 := min(float64(f.L2), math.MaxFloat32) // JSON has no infinities
	s.L2Mean += l2                            // a sum until all rows are in
	s.L2Max = max(s.L2Max, l2)
	s.AbsMax = max(s.AbsMax, min(float64(f.AbsMax), math.MaxFloat32))
	s.NonFinite += int64(f.NonFinite)
}

// what is the last column of the table: what a record says, in a few words.
func (r *Record) what() string {
	parts := make([]string, 0, 3)
	if len(r.Hooks) > 0 {
		parts = append(parts, some(r.Hooks))
	}
	if len(r.Requests) > 0 {
		parts = append(parts, some(r.Requests))
	}
	if r.Text != "" {
		parts = append(parts, r.Text)
	}
	if r.Aborted {
		parts = append(parts, "aborted")
	}
	return strings.Join(parts, "  ")
}

func some(list []string) string {
	if len(list) == 1 {
		return list[0]
	}
	return fmt.Sprintf("%s +%d", list[0], len(list)-1)
}
