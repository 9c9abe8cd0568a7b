package bpe

import (
	"strings"
	"unicode/utf8"
)

// decoder is a model.Decoder.
type decoder struct {
	t       *Tokenizer
	pending []byte // the beginning of a character, at most three bytes between calls
}

// Next gives the text that became complete with a token.
func (d *decoder) Next(id int32) string {
	if id < 0 || int(id) >= len(d.t.bytes) {
		return ""
	}
	d.pending = append(d.pending, d.t.bytes[id]...)
	return d.take(false)
}

// Flush gives what waits for bytes that will not come.
func (d *decoder) Flush() string { return d.take(true) }

// take removes what is complete from the pending bytes; at the end, that is all.
func (d *decoder) take(end bool) string {
	var b strings.Builder
	at := 0
	for at < len(d.pending) {
		rest := d.pending[at:]
		if r, size := utf8.DecodeRune(rest); r != utf8.RuneError || size > 1 {
			b.Write(rest[:size])
			at += size
			continue
		}
		if !end && !utf8.FullRune(rest) {
			break
		}
		b.WriteRune(utf8.RuneError)
		at += beginning(rest)
	}
	d.pending = d.pending[:copy(d.pending, d.pending[at:])]
	return b.String()
}

// beginning is how many bytes of b, which does not begin with a character, could
// have begun one; at least 1. One U+FFFD replaces them, as Unicode recommends.
func beginning(b []byte) int {
	n := 1
	for n < len(b) && n < utf8.UTFMax && !utf8.FullRune(b[:n]) {
		n++
	}
	if n > 1 && utf8.FullRune(b[:n]) {
		n-- // the last byte made it impossible
	}
	return n
}
