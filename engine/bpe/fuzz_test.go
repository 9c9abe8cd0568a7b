package bpe

import (
	"os"
	"testing"
)

// A tokenizer file from anywhere is refused with an error, or makes a tokenizer
// that neither panics nor loses text.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}}`))
	f.Add([]byte(`{"model":{"type":"BPE","vocab":{"a":0},"merges":[["a","a"]]},"added_tokens":[{"id":7,"content":"<x>"}]}`))
	f.Add([]byte(`{}`))
	if whole, err := os.ReadFile("../../models/trilingual/tokenizer.json"); err == nil {
		f.Add(whole[:4096])
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		tokenizer, err := Parse(text)
		if err != nil {
			return
		}
		ids := tokenizer.Encode("ab ba <x> äß")
		_ = tokenizer.Decode(ids)
		_ = tokenizer.Decode([]int32{-1, 0, 1 << 30})
	})
}
