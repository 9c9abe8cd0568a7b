package bpe

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// class is what the rule for words distinguishes.
type class int

const (
	other class = iota
	letter
	number
	space
)

func classOf(r rune) class {
	switch {
	case unicode.IsLetter(r):
		return letter
	case unicode.Is(unicode.N, r):
		return number
	case unicode.IsSpace(r):
		return space
	default:
		return other
	}
}

var contractions = []string{"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}

// wordLength is the length in bytes of the first word of a text that is not
// empty. It is what this expression of GPT-2 matches, where every text begins
// with a match:
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
func wordLength(text string) int {
	if text[0] == '\'' {
		for _, c := range contractions {
			if strings.HasPrefix(text, c) {
				return len(c)
			}
		}
	}
	start := 0
	if text[0] == ' ' && len(text) > 1 {
		start = 1
	}
	r, _ := utf8.DecodeRuneInString(text[start:])
	if c := classOf(r); c != space {
		end, _ := run(text[start:], c)
		return start + end
	}
	// Spaces: all of them at the end of the text, else all but the last, which may
	// belong to the word that follows, or the one there is.
	end, last := run(text, space)
	if end == len(text) || last == 0 {
		return end
	}
	return last
}

// run is how many bytes at the beginning of text are runes of one class, and
// where the last of these runes begins.
func run(text string, c class) (end, last int) {
	for end < len(text) {
		r, size := utf8.DecodeRuneInString(text[end:])
		if classOf(r) != c {
			break
		}
		last, end = end, end+size
	}
	return end, last
}
