package bpe

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of a tokenizer.json.
const (
	maxFileBytes = 64 << 20
	maxID        = 1<<20 - 1
)

// file is what is read of a tokenizer.json. What it could ask for and we do not
// do is read too, to refuse it: other ids than the model was trained with would
// be worse than an error.
type file struct {
	Added []struct {
		ID         int32  `json:"id"`
		Content    string `json:"content"`
		SingleWord bool   `json:"single_word"`
		Lstrip     bool   `json:"lstrip"`
		Rstrip     bool   `json:"rstrip"`
	} `json:"added_tokens"`
	Normalizer    json.RawMessage `json:"normalizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	PreTokenizer  *struct {
		Type           string `json:"type"`
		AddPrefixSpace bool   `json:"add_prefix_space"`
		UseRegex       *bool  `json:"use_regex"`
	} `json:"pre_tokenizer"`
	Decoder *struct {
		Type string `json:"type"`
	} `json:"decoder"`
	Model struct {
		Type         string           `json:"type"`
		Dropout      *float64         `json:"dropout"`
		Prefix       *string          `json:"continuing_subword_prefix"`
		Suffix       *string          `json:"end_of_word_suffix"`
		ByteFallback bool             `json:"byte_fallback"`
		IgnoreMerges bool             `json:"ignore_merges"`
		Vocabulary   map[string]int32 `json:"vocab"`
		Merges       []mergeText      `json:"merges"`
		Unknown      *string          `json:"unk_token"`
	} `json:"model"`
}

// mergeText is ["a", "b"], or "a b" in older files.
type mergeText [2]string

func (m *mergeText) UnmarshalJSON(b []byte) error {
	var parts []string
	if len(b) > 0 && b[0] == '"' {
		var text string
		if err := json.Unmarshal(b, &text); err != nil {
			return err
		}
		parts = strings.Split(text, " ")
	} else if err := json.Unmarshal(b, &parts); err != nil {
		return err
	}
	if len(parts) != 2 {
		return fmt.Errorf("merge %s is not a pair", b)
	}
	*m = mergeText(parts)
	return nil
}

// Load reads a tokenizer.json.
func Load(path string) (*Tokenizer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("load tokenizer: %w", err)
	}
	if info.Size() > maxFileBytes {
		return nil, fmt.Errorf("load tokenizer %s: it has %d bytes, at most %d", path, info.Size(), maxFileBytes)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load tokenizer: %w", err)
	}
	t, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("load tokenizer %s: %w", path, err)
	}
	return t, nil
}

// Parse reads the contents of a tokenizer.json.
func Parse(b []byte) (*Tokenizer, error) {
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("parse JSON: %w", err)
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	t := &Tokenizer{merges: make(map[pair]merge, len(f.Model.Merges))}
	for text, id := range f.Model.Vocabulary {
		if err := t.add(id, tokenBytes(text)); err != nil {
			return nil, fmt.Errorf("add token %q: %w", text, err)
		}
	}
	for b := range 256 {
		id, ok := f.Model.Vocabulary[string(byteRunes[b])]
		if !ok {
			return nil, fmt.Errorf("find the token of byte %d: there is none, so that some texts could not be encoded", b)
		}
		t.first[b] = id
	}
	for rank, m := range f.Model.Merges {
		left, ok1 := f.Model.Vocabulary[m[0]]
		right, ok2 := f.Model.Vocabulary[m[1]]
		id, ok3 := f.Model.Vocabulary[m[0]+m[1]]
		if !ok1 || !ok2 || !ok3 {
			return nil, fmt.Errorf("read merge %d, of %q and %q: one of them or both together are no token", rank, m[0], m[1])
		}
		t.merges[pair{left, right}] = merge{int32(rank), id}
	}
	for _, a := range f.Added {
		if id, ok := f.Model.Vocabulary[a.Content]; !ok || id != a.ID {
			if err := t.add(a.ID, a.Content); err != nil {
				return nil, fmt.Errorf("add special token %q: %w", a.Content, err)
			}
		}
		t.special = append(t.special, special{a.Content, a.ID})
	}
	slices.SortStableFunc(t.special, func(a, b special) int { return cmp.Compare(len(b.text), len(a.text)) })
	return t, nil
}

func (f *file) check() error {
	p, m := f.PreTokenizer, &f.Model
	switch {
	case m.Type != "BPE" || m.ByteFallback || m.IgnoreMerges || m.Dropout != nil || m.Unknown != nil ||
		m.Prefix != nil && *m.Prefix != "" || m.Suffix != nil && *m.Suffix != "":
		return fmt.Errorf("read the model of type %q: only BPE is supported, without dropout, fallbacks, prefixes "+
			"or suffixes", m.Type)
	case p == nil || p.Type != "ByteLevel" || p.AddPrefixSpace || p.UseRegex != nil && !*p.UseRegex:
		return fmt.Errorf("read the pre-tokenizer: only ByteLevel is supported, with its expression and without " +
			"a prefix space")
	case f.Decoder == nil || f.Decoder.Type != "ByteLevel":
		return fmt.Errorf("read the decoder: only ByteLevel is supported")
	case !isNull(f.Normalizer):
		return fmt.Errorf("read the normalizer: none is supported")
	case !isNull(f.PostProcessor):
		return fmt.Errorf("read the post-processor: none is supported")
	}
	for _, a := range f.Added {
		if a.SingleWord || a.Lstrip || a.Rstrip || a.Content == "" {
			return fmt.Errorf("read special token %q: it is empty, or strips spaces or wants whole words, "+
				"which is not supported", a.Content)
		}
	}
	return nil
}

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

func (t *Tokenizer) add(id int32, bytes string) error {
	if bytes == "" {
		return fmt.Errorf("it stands for no text")
	}
	if id < 0 || id > maxID {
		return fmt.Errorf("its id %d is not between 0 and %d", id, maxID)
	}
	for int(id) >= len(t.bytes) {
		t.bytes = append(t.bytes, "")
	}
	if t.bytes[id] != "" {
		return fmt.Errorf("its id %d is taken", id)
	}
	t.bytes[id] = bytes
	return nil
}

// byteRunes is the letter that stands for each byte in a vocabulary: itself if
// it is printable, else one of those from U+0100 on, in order.
var byteRunes = func() (runes [256]rune) {
	next := rune(0x100)
	for b := range rune(256) {
		if b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae {
			runes[b] = b
			continue
		}
		runes[b] = next
		next++
	}
	return runes
}()

// runeBytes is the way back.
var runeBytes = func() map[rune]byte {
	m := make(map[rune]byte, 256)
	for b, r := range byteRunes {
		m[r] = byte(b)
	}
	return m
}()

// tokenBytes gives the bytes of a token; one that is not written in letters for
// bytes stands for its own text.
func tokenBytes(text string) string {
	b := make([]byte, 0, utf8.RuneCountInString(text))
	for _, r := range text {
		c, ok := runeBytes[r]
		if !ok {
			return text
		}
		b = append(b, c)
	}
	return string(b)
}
