package replay

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"sonde/recording"
)

// Describe prints what a recording holds, session by session.
func Describe(w io.Writer, r *recording.Recording) error {
	var b strings.Builder
	for _, s := range r.Sessions {
		ring := &s.Start.Ring
		fmt.Fprintf(&b, "%s\n", s.Dir)
		line := func(name, format string, args ...any) {
			fmt.Fprintf(&b, "  %-9s %s\n", name, fmt.Sprintf(format, args...))
		}
		line("engine", "%q, rank %d of %d, epoch %016x, pid %d", ring.EngineInstance, ring.Rank, ring.RankCount, ring.Epoch,
			ring.ProducerPID)
		line("attached", "%s, recorded by %q", time.Unix(0, s.Start.AttachedNS).UTC().Format(time.RFC3339Nano),
			s.Start.Recorder)
		line("records", "%d from seq %d to %d, %s of payload, %s in %d segments", s.Total(), s.Start.Release,
			s.End.Until, Bytes(s.Payload), Bytes(s.Bytes), s.Segments)
		for _, kind := range slices.Sorted(maps.Keys(s.Records)) {
			line("", "%d %s", s.Records[kind], kind)
		}
		if s.Total() > 0 {
			line("captured", "over %v from %s", time.Duration(s.Last-s.First),
				s.Wall(s.First).UTC().Format(time.RFC3339Nano))
		}
		line("end", "%s", endText(s))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

var endTexts = map[recording.Reason]string{
	recording.ReasonEnded:   "the engine died",
	recording.ReasonStopped: "the recorder was stopped while the engine went on",
	recording.ReasonFull:    "the recording reached its bound while the engine went on",
	recording.ReasonFailed:  "the recording could not be written",
	recording.ReasonCorrupt: "the ring could not be read on",
	recording.ReasonTorn:    "torn: the recorder died",
}

func endText(s *recording.Session) string {
	text := endTexts[s.End.Reason]
	switch {
	case s.End.Counters.Closing && s.End.Reason == recording.ReasonEnded:
		text = "the engine said goodbye"
	case text == "":
		text = string(s.End.Reason)
	}
	if s.End.Detail != "" {
		text += fmt.Sprintf("; %q", s.End.Detail)
	}
	for _, more := range []string{
		count(s.Lost, "records that the engine never committed"),
		count(s.Left, "records behind the last step boundary, which are not used"),
		count(uint64(s.Torn), "bytes of a record that was not written to its end")} {
		if more != "" {
			text += "; " + more
		}
	}
	return text
}

func count(n uint64, what string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d %s", n, what)
}

// Bytes writes a size for people.
func Bytes(n int64) string {
	size, unit := float64(n), 0
	for size >= 1024 && unit < len(units)-1 {
		size, unit = size/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f %s", size, units[unit])
}

var units = [...]string{"bytes", "KiB", "MiB", "GiB", "TiB"}
