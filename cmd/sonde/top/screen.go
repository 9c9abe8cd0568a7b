package top

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// The size of a terminal that does not say.
const (
	defaultWidth  = 80
	defaultHeight = 24
)

// lines are the view for people, at most height of them (0 or less: none), each of at
// most width letters. Ranks and detectors that do not fit are counted.
func (v *View) lines(width, height int) []string {
	head := v.processLines()
	head = append(head, v.ledgerLines()...)
	var tail []string
	for _, e := range v.Engines {
		attached := "agent attached"
		if !e.Attached {
			attached = "NO AGENT"
		}
		tail = append(tail, fmt.Sprintf("ENGINE   %s tok/s  %s rows/s  dropped %s  ring %s records  %s", count(e.TokensPerS),
			count(e.RowsPerS), count(e.DroppedRows), count(e.UsedDescriptors), attached))
	}
	if b := v.Bus; b != nil {
		tail = append(tail, b.lines()...)
	}
	if l := v.Lake; l != nil {
		tail = append(tail, l.lines()...)
	}
	left := height - len(head) - len(tail)
	detectors := v.detectorLines(max(2, left/3))
	ranks := v.rankLines(max(2, left-len(detectors)))
	out := slices.Concat(head, ranks, tail, detectors)
	out = out[:max(0, min(height, len(out)))]
	for i, line := range out {
		out[i] = cut(line, width)
	}
	return out
}

func (v *View) processLines() []string {
	var out []string
	for _, p := range v.Processes {
		state := "no /readyz"
		switch {
		case p.Error != "":
			state = "UNREACHABLE " + p.Error
		case p.Ready != nil && *p.Ready:
			state = "ready"
		case p.Ready != nil:
			state = "NOT READY"
		}
		out = append(out, p.URL+"  "+state)
		for _, m := range p.Missing {
			out = append(out, "         "+m)
		}
	}
	return out
}

func (v *View) ledgerLines() []string {
	l, a := v.Ledger, v.Agent
	if l == nil {
		return nil
	}
	dropped := 0.0
	var reasons []string
	for _, reason := range slices.Sorted(maps.Keys(l.Dropped)) {
		dropped += l.Dropped[reason]
		reasons = append(reasons, reason+" "+count(l.Dropped[reason]))
	}
	why := ""
	if len(reasons) > 0 {
		why = " (" + strings.Join(reasons, ", ") + ")"
	}
	out := []string{
		fmt.Sprintf("LEDGER   captured %s  acknowledged %s  in flight %s  filtered %s", count(l.Captured),
			count(l.Acknowledged), count(l.InFlight), count(l.Filtered)),
		fmt.Sprintf("         aborted %s  lost %s  dead-lettered %s  dropped %s%s", count(l.Aborted), count(l.Lost),
			count(l.DeadLettered), count(dropped), why),
		fmt.Sprintf("AGENT    %s ranks  %s messages/s  %s/s  oldest batch %s", count(a.Ranks), count(a.MessagesPerS),
			size(a.BytesPerS), seconds(a.OldestOpenS))}
	if a.Refused+a.Quarantined+a.Corrupt+a.DeadFiles+a.UnservedAbort > 0 {
		out = append(out, fmt.Sprintf("         LOOK: refused %s  quarantined %s  corrupt %s  dead letters %s  unserved %s",
			count(a.Refused), count(a.Quarantined), count(a.Corrupt), count(a.DeadFiles), count(a.UnservedAbort)))
	}
	return out
}

func (v *View) rankLines(most int) []string {
	if len(v.Ranks) == 0 {
		return nil
	}
	out := []string{fmt.Sprintf("%-18s %7s %7s %7s %8s %7s %8s %7s", "RANK", "ROWS/s", "DROPS/s", "LAG", "HELD", "ROWS",
		"UNACKED", "OLDEST")}
	for i, r := range v.Ranks {
		if len(out) == most-1 && i < len(v.Ranks)-1 {
			return append(out, fmt.Sprintf("         and %d more ranks, less behind", len(v.Ranks)-i))
		}
		out = append(out, fmt.Sprintf("%-18s %7s %7s %7s %8s %7s %8s %7s", short(r.Engine+"/"+r.Rank, 18), count(r.RowsPerS),
			count(r.DroppedPerS), count(r.RingRecords), size(r.HeldBytes), count(r.InFlightRows), size(r.InFlightBytes),
			seconds(r.OldestBatchS)))
	}
	return out
}

func (b *Bus) lines() []string {
	state := "connected"
	if !b.Connected {
		state = "NOT CONNECTED"
	}
	limit := "no limit"
	if b.MaxBytes > 0 {
		limit = fmt.Sprintf("%s (%.0f %%)", size(b.MaxBytes), 100*b.Bytes/b.MaxBytes)
	}
	out := []string{fmt.Sprintf("BUS      %s  %s messages  %s of %s  unacked %s", state, count(b.Messages), size(b.Bytes),
		limit, size(b.WindowBytes))}
	if b.FailuresS > 0 {
		out = append(out, fmt.Sprintf("         LOOK: publishing failed and was repeated %s times a second",
			count(b.FailuresS)))
	}
	return out
}

func (l *Lake) lines() []string {
	out := []string{fmt.Sprintf("LAKE     lag %s messages, %s  %s rows/s  version %s, %s old", count(l.LagMessages),
		seconds(l.OldestS), count(l.RowsPerS), whole(l.Version), seconds(l.UnchangedFor)),
		fmt.Sprintf("         %s commits, half in %s  failed %s  dead letters %s", count(l.Commits), seconds(l.CommitP50S),
			count(l.Failures), count(l.DeadLetters))}
	if l.TrimmedAway > 0 {
		out = append(out, fmt.Sprintf("         LOOK: %s messages were trimmed before they were stored",
			count(l.TrimmedAway)))
	}
	return out
}

func (v *View) detectorLines(most int) []string {
	if len(v.Detectors) == 0 {
		return nil
	}
	out := []string{fmt.Sprintf("%-20s %8s %8s %8s %7s %7s %8s %s", "DETECTOR", "TOK/s", "P50", "P99", "ALERTS", "ABORTS",
		"MISSING", "STATE")}
	for i, d := range v.Detectors {
		if len(out) == most-1 && i < len(v.Detectors)-1 {
			return append(out, fmt.Sprintf("         and %d more detectors", len(v.Detectors)-i))
		}
		state := "ready"
		switch {
		case d.Breaker:
			state = "BREAKER"
		case !d.Ready:
			state = "PROBLEM"
		}
		out = append(out, fmt.Sprintf("%-20s %8s %8s %8s %7s %7s %8s %s", short(d.Name, 20), count(d.RowsPerS),
			optional(d.P50S), optional(d.P99S), count(d.Alerts), count(d.Aborts), count(d.Missing), state))
	}
	return out
}

func optional(v *float64) string {
	if v == nil {
		return "-"
	}
	return seconds(*v)
}

// count writes a number in at most 7 letters.
func count(n float64) string {
	switch {
	case n != 0 && n < 10 && n > -10 && n != float64(int(n)):
		return fmt.Sprintf("%.1f", n)
	case n < 1e6 && n > -1e6:
		return fmt.Sprintf("%.0f", n)
	case n < 1e9 && n > -1e9:
		return fmt.Sprintf("%.1fM", n/1e6)
	case n < 1e13 && n > -1e13:
		return fmt.Sprintf("%.1fG", n/1e9)
	}
	return fmt.Sprintf("%.1e", n)
}

func whole(n float64) string { return fmt.Sprintf("%.0f", n) }

func size(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for ; n >= 1024 && i < len(units)-1; i++ {
		n /= 1024
	}
	if n >= 10 || i == 0 {
		return fmt.Sprintf("%.0f %s", n, units[i])
	}
	return fmt.Sprintf("%.1f %s", n, units[i])
}

func seconds(s float64) string {
	switch {
	case s < 0.01:
		return fmt.Sprintf("%.1f ms", 1000*s)
	case s < 1:
		return fmt.Sprintf("%.0f ms", 1000*s)
	case s < 100:
		return fmt.Sprintf("%.1f s", s)
	}
	return fmt.Sprintf("%.0f s", s)
}

func short(s string, most int) string {
	if n := utf8.RuneCountInString(s); n > most {
		return string([]rune(s)[:most-1]) + "…"
	}
	return s
}

// cut makes a line fit and takes control characters away: names come from clients,
// and must not command the terminal.
func cut(line string, width int) string {
	line = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, strings.TrimRight(line, " "))
	return short(line, max(1, width))
}
