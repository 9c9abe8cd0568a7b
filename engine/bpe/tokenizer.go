package bpe

import (
	"strings"

	"sonde/engine/model"
)

// Tokenizer is a model.Tokenizer. Its methods may be called at the same time.
type Tokenizer struct {
	bytes   []string // of each id; "" where there is no token
	first   [256]int32
	merges  map[pair]merge
	special []special // longest first
}

// pair are two neighbouring tokens, merge what they become.
type pair struct{ left, right int32 }

type merge struct {
	rank int32 // the order in which the merges were learnt
	id   int32
}

// special is a token that stands for itself in text, like <|endoftext|>.
type special struct {
	text string
	id   int32
}

var _ model.Tokenizer = (*Tokenizer)(nil)

// Size is one more than the highest token id.
func (t *Tokenizer) Size() int { return len(t.bytes) }

// Encode gives the ids of a text. Special tokens in it become their ids. Bytes
// that are not UTF-8 keep their value; Decode shows them as U+FFFD.
func (t *Tokenizer) Encode(text string) []int32 {
	ids := make([]int32, 0, len(text)/3+1)
	var m merger
	for len(text) > 0 {
		at, length, id := t.nextSpecial(text)
		for plain := text[:at]; len(plain) > 0; {
			n := wordLength(plain)
			ids = t.appendWord(ids, &m, plain[:n])
			plain = plain[n:]
		}
		if length > 0 {
			ids = append(ids, id)
		}
		text = text[at+length:]
	}
	return ids
}

// nextSpecial finds the first special token in text, the longest if several
// begin there; length is 0 and at the text's end if there is none.
func (t *Tokenizer) nextSpecial(text string) (at, length int, id int32) {
	at = len(text)
	for _, s := range t.special {
		if i := strings.Index(text[:min(len(text), at+len(s.text)-1)], s.text); i >= 0 && i < at {
			at, length, id = i, len(s.text), s.id
		}
	}
	return at, length, id
}

// Decode gives the text of ids. Bytes that are not UTF-8 become U+FFFD, one for
// each sequence that could have begun a character. Ids without a token are left
// out.
func (t *Tokenizer) Decode(ids []int32) string {
	d := decoder{t: t}
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(d.Next(id))
	}
	b.WriteString(d.Flush())
	return b.String()
}

// NewDecoder decodes one sequence token by token.
func (t *Tokenizer) NewDecoder() model.Decoder { return &decoder{t: t} }
