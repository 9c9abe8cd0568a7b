package bustap

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// Figure is a number that is null in JSON when it is none: figures come from others,
// and may be infinite.
type Figure float64

// MarshalJSON implements json.Marshaler.
func (f Figure) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(f)) || math.IsInf(float64(f), 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(f))
}

// Stats are figures of the rows that are shown.
type Stats struct {
	L2Mean    Figure `json:"l2_mean"` // of the norms of the rows
	L2Max     Figure `json:"l2_max"`
	Mean      Figure `json:"mean"` // of the rows' means
	AbsMax    Figure `json:"abs_max"`
	NonFinite int64  `json:"nonfinite"` // elements
}

func (s *Stats) text() string {
	if s == nil {
		return ""
	}
	norm := fmt.Sprintf("l2 %.4g", s.L2Mean)
	if s.L2Max != s.L2Mean {
		norm += fmt.Sprintf(" max %.4g", s.L2Max)
	}
	out := fmt.Sprintf("%s  mean %.3g  abs %.4g", norm, s.Mean, s.AbsMax)
	if s.NonFinite > 0 {
		out += fmt.Sprintf("  %d nonfinite", s.NonFinite)
	}
	return out
}

// Chain says where a message or row belongs.
type Chain struct {
	Kind   string `json:"kind"`
	Tenant string `json:"tenant"`
	Engine string `json:"engine"`
	Rank   int    `json:"rank"`
	Epoch  string `json:"epoch"`
	Hook   string `json:"hook"`
	Layer  int    `json:"layer"` // -1: none
}

func (c *Chain) hook() string {
	if c.Layer < 0 {
		return c.Hook
	}
	return fmt.Sprintf("%s/%d", c.Hook, c.Layer)
}

// Place is a position of the stream: 17, or 2:17 in partition 2 of several.
type Place struct {
	Partition int    `json:"partition,omitempty"`
	Position  uint64 `json:"stream_position,omitempty"`
	several   bool   // the stream has several partitions
}

func (p Place) String() string {
	if p.several {
		return fmt.Sprintf("%d:%d", p.Partition, p.Position)
	}
	return fmt.Sprint(p.Position)
}

// Message is the line of a message.
type Message struct {
	Type string `json:"type"` // "message"
	Place
	StoredNS int64 `json:"stored_ns"`
	Chain
	DType   string `json:"dtype,omitempty"`
	Shape   []int  `json:"shape,omitempty"`
	Rows    int    `json:"rows"`
	Bytes   int    `json:"bytes"`
	First   string `json:"first"` // cursors, seq:row
	Last    string `json:"last"`
	Text    string `json:"text,omitempty"` // what rows say that are no tensors
	Stats   *Stats `json:"stats,omitempty"`
	Skipped uint64 `json:"skipped,omitempty"` // lines before this one that were over the rate
}

// Row is the line of one row of a request.
type Row struct {
	Type string `json:"type"` // "row"
	Place
	StoredNS int64 `json:"stored_ns"`
	Chain
	Seq           uint64 `json:"seq"`
	Row           uint32 `json:"row"`
	Request       string `json:"request"`
	Sample        int32  `json:"sample"`
	TokenPosition int32  `json:"position"`
	Pass          int32  `json:"pass"`
	Phase         string `json:"phase,omitempty"`
	Text          string `json:"text,omitempty"`
	Stats         *Stats `json:"stats,omitempty"`
	Skipped       uint64 `json:"skipped,omitempty"`
}

// Gap says what a chain or the stream did not deliver.
type Gap struct {
	Type string `json:"type"` // "gap"
	Place
	Chain   *Chain `json:"chain,omitempty"` // null: the stream itself
	From    string `json:"from,omitempty"`  // cursors; the gap ends before To
	To      string `json:"to,omitempty"`
	Text    string `json:"text"`
	Skipped uint64 `json:"skipped,omitempty"`
}

// Note is a line about what cannot be shown.
type Note struct {
	Type string `json:"type"` // "undecodable" or "skipped"
	Place
	Subject string `json:"subject,omitempty"`
	Text    string `json:"text"`
	Skipped uint64 `json:"skipped,omitempty"`
}

// line is what a tap shows.
type line interface {
	text() string
	skip(n uint64)
}

func (m *Message) skip(n uint64) { m.Skipped = n }
func (r *Row) skip(n uint64)     { r.Skipped = n }
func (g *Gap) skip(n uint64)     { g.Skipped = n }
func (n *Note) skip(k uint64)    { n.Skipped = k }

func (m *Message) text() string {
	return fmt.Sprintf("%9s %s  %-10s %-16s %s/%d %s  %d rows %s  %s-%s  %s", m.Place, clock(m.StoredNS), m.Kind,
		m.hook(), m.Engine, m.Rank, m.Tenant, m.Rows, size(m.Bytes), m.First, m.Last, m.Text+m.Stats.text()) +
		skipped(m.Skipped)
}

func (r *Row) text() string {
	return fmt.Sprintf("%9s %s  %-10s %-16s %s s%d pos %d pass %d %s  %s", r.Place, clock(r.StoredNS), r.Kind, r.hook(),
		r.Request, r.Sample, r.TokenPosition, r.Pass, r.Phase, r.Text+r.Stats.text()) + skipped(r.Skipped)
}

func (g *Gap) text() string {
	where := "stream"
	if g.Chain != nil {
		where = fmt.Sprintf("%s %s %s/%d %s", g.Chain.Kind, g.Chain.hook(), g.Chain.Engine, g.Chain.Rank, g.Chain.Tenant)
	}
	return fmt.Sprintf("%9s GAP           %s: %s", g.Place, where, g.Text) + skipped(g.Skipped)
}

func (n *Note) text() string {
	if n.Type == "skipped" {
		return fmt.Sprintf("%9s ... %s", "", n.Text)
	}
	return fmt.Sprintf("%9s UNDECODABLE   %s: %s", n.Place, n.Subject, n.Text) + skipped(n.Skipped)
}

func skipped(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("  (+%d skipped)", n)
}

func clock(ns int64) string { return time.Unix(0, ns).Format("15:04:05.000") }

func size(n int) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// write puts one line out, as JSON or cut to the width of a terminal; 0: uncut.
func write(w io.Writer, l line, asJSON bool, width int) error {
	if asJSON {
		text, err := json.Marshal(l)
		if err != nil {
			panic("BUG: a line of the tap is always JSON: " + err.Error())
		}
		_, err = w.Write(append(text, '\n'))
		return err
	}
	text := []rune(strings.TrimRight(printable(l.text()), " "))
	if width > 1 && len(text) > width {
		text = append(text[:width-1], '…')
	}
	_, err := fmt.Fprintln(w, string(text))
	return err
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
