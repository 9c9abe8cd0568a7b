package ringtap

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"sonde/ring2"
)

const (
	defaultWidth = 80
	hangs        = 3 * time.Second // an agent that lives says so at least once a second
)

// State is what a tap says about a ring.
type State struct {
	Type         string            `json:"type"` // "ring"
	PID          int               `json:"pid"`
	Command      string            `json:"command"`
	Engine       string            `json:"engine"`
	Model        string            `json:"model,omitempty"`
	Epoch        string            `json:"epoch"`
	Rank         uint32            `json:"rank"`
	RankCount    uint32            `json:"rank_count"`
	Mode         string            `json:"mode"`
	Descriptors  uint64            `json:"descriptors"`
	DataBytes    uint64            `json:"data_bytes"`
	Claim        uint64            `json:"claim_seq"`
	Release      uint64            `json:"release_seq"`
	Lag          uint64            `json:"lag"`
	CapturedRows uint64            `json:"captured_rows"`
	DroppedRows  map[string]uint64 `json:"dropped_rows"`
	AbortedRows  uint64            `json:"aborted_rows"`
	Steps        uint64            `json:"steps"`
	EngineBeat   float64           `json:"engine_beat_seconds"` // age
	AgentBeat    *float64          `json:"agent_beat_seconds"`  // null: never
	AgentWaits   bool              `json:"agent_waits"`
	Closing      bool              `json:"closing"`
	Skipped      Skipped           `json:"skipped"`
}

// StateOf reads what a ring says about itself now.
func StateOf(r *Ring) State {
	c, st := r.Config(), r.State()
	s := State{Type: "ring", PID: r.PID, Command: r.Command, Engine: c.EngineInstance, Model: r.known.model,
		Epoch: fmt.Sprintf("%016x", c.Epoch), Rank: c.Rank, RankCount: c.RankCount, Mode: c.Mode.String(),
		Descriptors: c.DescCount, DataBytes: c.DataBytes, Claim: st.Claim, Release: st.Release, Lag: st.Claim - st.Release,
		CapturedRows: st.Producer.CapturedRows, DroppedRows: map[string]uint64{}, AbortedRows: st.Producer.AbortedRows,
		Steps: st.Producer.Steps, EngineBeat: ring2.Age(st.Producer.BeatNS).Seconds(), AgentWaits: st.ReaderWaits,
		Closing: st.Producer.Closing}
	for i, n := range st.Producer.DroppedRows {
		if n > 0 {
			s.DroppedRows[ring2.Reason(i).String()] = n
		}
	}
	if st.ReaderBeatNS != 0 {
		age := ring2.Age(st.ReaderBeatNS).Seconds()
		s.AgentBeat = &age
	}
	return s
}

// lines are the state for people.
func (s *State) lines() []string {
	dropped := uint64(0)
	var reasons []string
	for i := range ring2.ReasonCount {
		name := ring2.Reason(i).String()
		if n := s.DroppedRows[name]; n > 0 {
			dropped += n
			reasons = append(reasons, fmt.Sprintf("%s %d", name, n))
		}
	}
	why := ""
	if len(reasons) > 0 {
		why = " (" + strings.Join(reasons, ", ") + ")"
	}
	agent := "never attached"
	if s.AgentBeat != nil {
		agent = fmt.Sprintf("%.1f s ago", *s.AgentBeat)
		if *s.AgentBeat > hangs.Seconds() {
			agent += ": it hangs or is gone"
		}
	}
	out := []string{
		fmt.Sprintf("ring      engine %s  rank %d of %d  epoch %s", s.Engine, s.Rank, s.RankCount, s.Epoch),
		fmt.Sprintf("          pid %d (%s)  %s  %d descriptors  %d MiB  %s", s.PID, s.Command, s.Mode, s.Descriptors,
			s.DataBytes>>20, s.Model),
		fmt.Sprintf("position  claim %d  release %d  lag %d (%.0f %% of the descriptors)", s.Claim, s.Release, s.Lag,
			100*float64(s.Lag)/float64(s.Descriptors)),
		fmt.Sprintf("rows      captured %d  dropped %d%s  aborted %d  steps %d", s.CapturedRows, dropped, why, s.AbortedRows,
			s.Steps),
		fmt.Sprintf("alive     engine %.1f s ago  agent %s", s.EngineBeat, agent),
	}
	if k := s.Skipped; k != (Skipped{}) {
		out = append(out, fmt.Sprintf("skipped   %d over the rate  %d overwritten  %d torn", k.Rate, k.Overwritten, k.Torn))
	}
	if s.Closing {
		out = append(out, "          the engine has said goodbye")
	}
	return out
}

const tableHead = "       seq  kind          age     step   rows      bytes  what"

// lines are the record for people: one, and one more for each hook with figures.
func (r *Record) lines() []string {
	kind := r.Kind
	if !r.Released {
		kind += "*"
	}
	out := []string{fmt.Sprintf("%10d  %-12s %6s %7s %6s %10d  %s", r.Seq, kind, ageText(r.captureNS),
		number(r.Step, r.hasStep()), number(uint64(r.Rows), r.Rows > 0), r.Bytes, r.what())}
	for _, s := range r.Stats {
		name := s.Hook
		if s.Layer >= 0 {
			name = fmt.Sprintf("%s/%d", s.Hook, s.Layer)
		}
		line := fmt.Sprintf("            %-15s %4d rows  l2 mean %.3g max %.3g  abs %.3g", name, s.Rows, s.L2Mean, s.L2Max,
			s.AbsMax)
		if s.NonFinite > 0 {
			line += fmt.Sprintf("  %d nonfinite", s.NonFinite)
		}
		out = append(out, line)
	}
	return out
}

func (r *Record) hasStep() bool {
	return r.Kind == ring2.KindStep.String() || r.Kind == ring2.KindCapture.String()
}

func number(n uint64, there bool) string {
	if !there {
		return ""
	}
	return fmt.Sprint(n)
}

func ageText(captureNS uint64) string {
	if captureNS == 0 {
		return ""
	}
	switch d := ring2.Age(captureNS); {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 100*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		return fmt.Sprintf("%.0f m", d.Minutes())
	}
}

// print writes what came as lines, with the state of the ring before it when asked.
func (t *tap) print(state bool, records []Record) error {
	var b strings.Builder
	if state {
		s := StateOf(t.r)
		s.Skipped = t.skipped
		if t.o.JSON {
			writeJSON(&b, &s)
		} else {
			writeLines(&b, s.lines(), 0)
		}
	}
	if state && !t.o.JSON && len(records) > 0 {
		fmt.Fprintln(&b, tableHead)
	}
	for i := range records {
		if t.o.JSON {
			writeJSON(&b, &records[i])
		} else {
			writeLines(&b, records[i].lines(), 0)
		}
	}
	_, err := io.WriteString(t.o.Out, b.String())
	return err
}

func writeJSON(b *strings.Builder, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic("BUG: a line of the tap is always JSON: " + err.Error())
	}
	b.Write(text)
	b.WriteByte('\n')
}

// writeLines writes lines, cut to a width when there is one.
func writeLines(b *strings.Builder, lines []string, width int) {
	for _, line := range lines {
		line = strings.TrimRight(printable(line), " ")
		if n := utf8.RuneCountInString(line); width > 0 && n > width {
			line = string([]rune(line)[:width-1]) + "…"
		}
		b.WriteString(line)
		b.WriteByte('\n')
	}
}

// printable takes control characters away: names come from clients, and must not
// command the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// draw fills the screen: the state of the ring, and the newest records below.
func (t *tap) draw() error {
	width, height := t.o.Screen()
	if width < 1 || height < 1 {
		width, height = defaultWidth, 24
	}
	s := StateOf(t.r)
	s.Skipped = t.skipped
	head := append(s.lines(), "", tableHead)
	var body []string
	room := max(1, height-len(head)-1)
	for i := len(t.shown) - 1; i >= 0 && len(body) < room; i-- {
		body = append(t.shown[i].lines(), body...)
	}
	body = body[max(0, len(body)-room):]
	if len(t.shown) > height {
		t.shown = t.shown[len(t.shown)-height:]
	}
	var b strings.Builder
	b.WriteString("\x1b[H\x1b[J") // home, and erase what follows
	writeLines(&b, append(head, body...), width)
	_, err := io.WriteString(t.o.Out, b.String())
	return err
}

// List prints the state of several rings.
func List(w io.Writer, rings []*Ring, asJSON bool) error {
	var b strings.Builder
	for _, r := range rings {
		r.learnAll()
		s := StateOf(r)
		if asJSON {
			writeJSON(&b, &s)
		} else {
			writeLines(&b, append(s.lines(), ""), 0)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// exited says whether the engine's process has ended. Its memory stays mapped here.
func (r *Ring) exited() bool { return syscall.Kill(r.PID, 0) == syscall.ESRCH }
