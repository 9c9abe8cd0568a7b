package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// JSON writes the report as one object.
func (r *Report) JSON(w io.Writer) error { return json.NewEncoder(w).Encode(r) }

// Page writes the report for people: one block an epoch, then the bus, then the stages.
func (r *Report) Page(w io.Writer, now time.Time) error {
	var b strings.Builder
	for _, e := range r.Epochs {
		state := "ended"
		if len(e.Account.OpenEpochs) > 0 {
			state = "open"
		}
		fmt.Fprintf(&b, "engine %s, rank %d, epoch %s, %s\n", e.Engine, e.Rank, e.Epoch, state)
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
		for _, line := range e.lines() {
			fmt.Fprintf(t, "  %s\t%d\t\n", line.what, line.rows)
		}
		t.Flush()
		for _, example := range e.Account.Examples {
			fmt.Fprintf(&b, "  %s\n", example)
		}
		b.WriteByte('\n')
	}
	if len(r.Epochs) == 0 {
		b.WriteString("no epoch is known: nothing was captured into this lake yet\n\n")
	}
	fmt.Fprintf(&b, "lake: version %d\n", r.LakeVersion)
	for _, p := range r.Partitions {
		fmt.Fprintf(&b, "bus, partition %d: %d messages behind the lake, from position %d to below %d", p.Partition,
			p.Messages, p.From, p.To)
		if p.Unread > 0 {
			fmt.Fprintf(&b, "; %d of them cannot be read", p.Unread)
		}
		if p.Trimmed > 0 {
			fmt.Fprintf(&b, "; %d were trimmed before the lake had them", p.Trimmed)
		}
		if p.Note != "" {
			b.WriteString("; " + p.Note)
		}
		b.WriteByte('\n')
	}
	r.stages(&b, now)
	_, err := io.WriteString(w, b.String())
	return err
}

type line struct {
	what string
	rows uint64
}

// lines are where the rows of an epoch are, as the law adds them up.
func (e *Epoch) lines() []line {
	a := e.Account
	out := []line{{"captured", a.Expected}, {"= stored", a.Stored}, {"+ on the bus", a.OnBus}}
	for _, reason := range slices.Sorted(maps.Keys(a.Dropped)) {
		out = append(out, line{"+ dropped (" + reason + ")", a.Dropped[reason]})
	}
	out = append(out, line{"+ aborted", a.Aborted}, line{"+ lost", a.Lost}, line{"+ dead-lettered", a.DeadLettered},
		line{"+ in flight", a.InFlight})
	for _, beside := range []line{{"offered and not told of yet", e.Untold}, {"filtered by the policy", a.Filtered},
		{"stored before their facts", a.Early}, {"STORED MORE THAN ONCE", a.Duplicated},
		{"STORED UNASKED", a.Unasked}, {"UNEXPLAINED", a.Unexplained}} {
		if beside.rows > 0 {
			out = append(out, beside)
		}
	}
	return out
}

// stages lists what the stages told.
func (r *Report) stages(b *strings.Builder, now time.Time) {
	if len(r.Stages) == 0 {
		b.WriteString("stages: none was heard; is sonde run up, and does the broker let it publish on sonde.counts?\n")
		return
	}
	b.WriteString("stages, as they told it:\n")
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	for _, c := range r.Stages {
		var rows []string
		for _, class := range slices.Sorted(maps.Keys(c.Rows)) {
			rows = append(rows, fmt.Sprintf("%s %d", class, c.Rows[class]))
		}
		epoch := "epoch " + c.Epoch
		if c.Epoch == strings.Repeat("0", 16) {
			epoch = "all epochs"
		}
		fmt.Fprintf(t, "  %s\t%s/%d\t%s\trecords %d to below %d\t%s\t%.1f s ago\n", c.Stage, c.Engine, c.Rank, epoch,
			c.FromSeq, c.ToSeq, strings.Join(rows, ", "), now.Sub(time.Unix(0, c.WallNS)).Seconds())
	}
	t.Flush()
}
