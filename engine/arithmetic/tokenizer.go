package arithmetic

import (
	"strconv"
	"strings"

	"sonde/engine/model"
)

// Tokenizer reads bytes as token ids and writes token ids as decimal numbers,
// each after a blank.
type Tokenizer struct{}

// Encode makes one token of each byte.
func (Tokenizer) Encode(text string) []int32 {
	ids := make([]int32, len(text))
	for i := range ids {
		ids[i] = int32(text[i])
	}
	return ids
}

// Decode writes the numbers.
func (t Tokenizer) Decode(ids []int32) string {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(t.Next(id))
	}
	return b.String()
}

// NewDecoder returns a decoder, which has no state.
func (t Tokenizer) NewDecoder() model.Decoder { return t }

// Next is the text of one token.
func (Tokenizer) Next(id int32) string { return " " + strconv.Itoa(int(id)) }

// Flush is empty: no token is ever incomplete.
func (Tokenizer) Flush() string { return "" }
