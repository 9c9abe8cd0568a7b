package bpe

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

// smallFile is a tokenizer.json with one token for each byte, two merges and a
// special token.
func smallFile(t testing.TB) []byte {
	t.Helper()
	vocabulary := map[string]int32{"ab": 256, "aba": 257}
	for b := range 256 {
		vocabulary[string(byteRunes[b])] = int32(b)
	}
	text, err := json.Marshal(map[string]any{
		"added_tokens":  []map[string]any{{"id": 258, "content": "<x>"}},
		"pre_tokenizer": map[string]any{"type": "ByteLevel"}, "decoder": map[string]any{"type": "ByteLevel"},
		"model": map[string]any{"type": "BPE", "vocab": vocabulary, "merges": []any{"a b", []string{"ab", "a"}}}})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A tokenizer file from anywhere is refused with an error, or makes a tokenizer
// that neither panics nor loses text.
func FuzzParse(f *testing.F) {
	small := smallFile(f)
	f.Add(small, "ab aba <x> äß")
	f.Add(small[:len(small)-1], "")
	f.Add([]byte(`{"model":{"type":"BPE","vocab":{"a":0},"merges":[["a","a"]]},"added_tokens":[{"id":7}]}`), "a")
	f.Fuzz(func(t *testing.T, file []byte, text string) {
		tokenizer, err := Parse(file)
		if err != nil || !utf8.ValidString(text) { // Other text is shown with replacement characters.
			return
		}
		if back := tokenizer.Decode(tokenizer.Encode(text)); back != text {
			t.Errorf("%q comes back as %q", text, back)
		}
		_ = tokenizer.Decode([]int32{-1, 0, 1 << 30})
	})
}

// A seed that is refused would only fuzz the first check.
func TestTheSeedIsATokenizer(t *testing.T) {
	tokenizer, err := Parse(smallFile(t))
	if err != nil {
		t.Fatal(err)
	}
	if ids := tokenizer.Encode("aba<x>"); len(ids) != 2 || ids[0] != 257 || ids[1] != 258 {
		t.Errorf("ids %v, want 257 258", ids)
	}
}
