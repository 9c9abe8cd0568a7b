package scheduler

import (
	"bytes"

	"sonde/engine/model"
)

// text is what a sequence says. It looks for stop strings, and holds back what
// may become one.
type text struct {
	decoder model.Decoder
	stop    [][]byte
	longest int // bytes of a stop string
	all     []byte
	ends    []int // length of all after each token
	sent    int
}

func newText(t model.Tokenizer, stop []string) text {
	out := text{decoder: t.NewDecoder()}
	for _, s := range stop {
		out.stop = append(out.stop, []byte(s))
		out.longest = max(out.longest, len(s))
	}
	return out
}

// add takes a token. At a stop string the text ends before it, and kept is the
// number of tokens that the remaining text needs; otherwise kept is -1.
func (t *text) add(id int32) (kept int) {
	from := max(0, len(t.all)-t.longest+1)
	t.all = append(t.all, t.decoder.Next(id)...)
	t.ends = append(t.ends, len(t.all))
	at := t.find(from)
	if at < 0 {
		return -1
	}
	t.all, t.stop = t.all[:at], nil
	for at > 0 && (kept == 0 || t.ends[kept-1] < at) {
		kept++
	}
	return kept
}

// find is the first place at or after from where a stop string starts, or -1.
func (t *text) find(from int) int {
	first := -1
	for _, s := range t.stop {
		if at := bytes.Index(t.all[from:], s); at >= 0 && (first < 0 || from+at < first) {
			first = from + at
		}
	}
	return first
}

// ready is the new text that can no longer become part of a stop string.
func (t *text) ready() string {
	held := 0
	for _, s := range t.stop {
		for n := min(len(s)-1, len(t.all)-t.sent); n > held; n-- {
			if bytes.HasSuffix(t.all, s[:n]) {
				held = n
			}
		}
	}
	return t.take(len(t.all) - held)
}

// rest is the new text at the end of a sequence that was not ended by a stop
// string, with the bytes of an incomplete rune.
func (t *text) rest() string {
	t.all = append(t.all, t.decoder.Flush()...)
	return t.take(len(t.all))
}

// take hands out the new text up to end. A stop string that starts in text that
// was handed out does not exist: ready holds it back.
func (t *text) take(end int) string {
	out := string(t.all[t.sent:end])
	t.sent = end
	return out
}
