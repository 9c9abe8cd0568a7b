package schema

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
)

// SubjectPrefix is the first two tokens of every data subject.
const SubjectPrefix = "sonde.v1"

// Subject is where a message is published:
// sonde.v1.<tenant>.<engine>.<rank>.<kind>.<hook>.<layer>.
func Subject(h Header) string {
	layer := "_"
	if h.Layer >= 0 {
		layer = strconv.Itoa(h.Layer)
	}
	return SubjectPrefix + "." + escape(h.Tenant) + "." + escape(h.Engine) + "." + strconv.Itoa(h.Rank) + "." +
		escape(string(h.Kind)) + "." + escape(h.Hook) + "." + layer
}

// AbortSubject is where a rank's abort command is served:
// sonde.cmd.<tenant>.<engine>.<rank>.abort.
func AbortSubject(tenant, engine string, rank int) string {
	return "sonde.cmd." + escape(tenant) + "." + escape(engine) + "." + strconv.Itoa(rank) + ".abort"
}

// EscapeToken makes one subject token of any text: bytes outside [A-Za-z0-9_-]
// become =XX, empty text becomes "_", and "_" itself =5F.
func EscapeToken(s string) string { return escape(s) }

// MessageID is the bus's deduplication id. The same rows give the same id; it
// carries the chain, the first and last cursor, and a hash of the spans.
func MessageID(h Header) string {
	sum := fnv.New64a()
	var buf [64]byte
	for _, s := range h.Spans {
		sum.Write(appendSpan(buf[:0], s))
	}
	return fmt.Sprintf("%s/%s-%s/%016x", h.Chain(), h.First(), h.Last(), sum.Sum64())
}

const hexDigits = "0123456789ABCDEF"

func escape(s string) string {
	if s == "" {
		return "_"
	}
	if s == "_" {
		return "=5F"
	}
	clean := true
	for i := 0; i < len(s) && clean; i++ {
		clean = tokenByte(s[i])
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if tokenByte(s[i]) {
			b.WriteByte(s[i])
			continue
		}
		b.WriteByte('=')
		b.WriteByte(hexDigits[s[i]>>4])
		b.WriteByte(hexDigits[s[i]&15])
	}
	return b.String()
}

func unescape(s string) (string, error) {
	if s == "_" {
		return "", nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if tokenByte(s[i]) {
			b.WriteByte(s[i])
			continue
		}
		if s[i] != '=' || i+2 >= len(s) {
			return "", fmt.Errorf("token %q is not escaped", clip(s))
		}
		v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", fmt.Errorf("token %q: %q is no byte in hex", clip(s), s[i:i+3])
		}
		b.WriteByte(byte(v))
		i += 2
	}
	return b.String(), nil
}

func tokenByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}
