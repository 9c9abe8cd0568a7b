// Package model is the small interface between the engine and what it runs: a
// model computes one step over many sequences and offers its insides to a Tap.
package model

import "sonde/ring2"

// Hook is one point inside a model whose value can be captured: one row of
// Shape elements of DType per token.
type Hook struct {
	Name   string // like "resid_post"
	Layer  int    // -1: the hook belongs to no layer
	DType  ring2.DType
	Shape  []uint32 // of one row, empty for a scalar; of a ragged hook: of one unit
	Select ring2.RowSelect
	Ragged bool // the length of a row depends on its position: Model.RaggedRowBytes
}

// RowBytes is the size of one row, or of one unit of a ragged hook.
func (h *Hook) RowBytes() int {
	n := h.DType.Size()
	for _, d := range h.Shape {
		n *= int(d)
	}
	return n
}

// Info describes a model. Hooks are numbered by their index in it.
type Info struct {
	Name, Revision, WeightsDigest, Quantisation string
	Layers, DModel, Vocab                       int
	Context                                     int   // longest sequence in tokens
	EOS                                         int32 // token that ends a sequence, -1: none
	Hooks                                       []Hook
}

// Range is a run of consecutive tokens of one sequence that a step computes. A
// step holds at most one range of a sequence.
type Range struct {
	Request  string // external id of the request
	Number   uint64 // of the sequence, unique in the epoch
	Sample   int
	Pass     int // how often these positions were computed before
	Position int // of Tokens[0]
	Tokens   []int32
	Blocks   []int32   // KV blocks of positions 0 to Position+len(Tokens)
	Logits   []float32 // Vocab long; non-nil: fill with the logits of the last token
}

// Tap gives a model the memory into which it writes the rows of its hooks.
// Rows stand in the order of the ranges and their tokens.
type Tap interface {
	// Span is the memory for all rows of one hook in this step, or nil when
	// nobody wants them. Hooks of ring2.SelectSampled have one row for each range
	// with Logits. The memory is not zeroed: all of it must be written.
	Span(hook int) []byte
	// RaggedSpan is the memory for the rows of one range of a ragged hook, one
	// after the other, or nil when nobody wants them. The sizes are those of
	// Model.RaggedRowBytes; offsets are not the model's business.
	RaggedSpan(hook, rng int) []byte
}

// Model computes steps. All methods but Info have a single caller. Everything
// that a range computes depends on its own sequence only, bit for bit: not on
// the other ranges of the step, and not on how its tokens were cut into steps.
type Model interface {
	Info() *Info
	// Allocate makes room for the keys and values of blocks * blockTokens
	// positions. It is called once, before the first Forward.
	Allocate(blocks, blockTokens int) error
	// CopyBlock copies all keys and values of a block.
	CopyBlock(dst, src int32)
	// RaggedRowBytes is the size of a ragged hook's row at a position.
	RaggedRowBytes(hook, position int) int
	// Forward computes one step. After an error, nothing that it wrote counts.
	Forward(ranges []Range, tap Tap) error
}

// Tokenizer turns text into token ids and back.
type Tokenizer interface {
	Encode(text string) []int32
	Decode(ids []int32) string
	NewDecoder() Decoder
}

// Decoder decodes one sequence as it grows. It never splits a UTF-8 rune: the
// bytes of an incomplete one wait for the tokens that complete it.
type Decoder interface {
	Next(id int32) string // text that became complete with this token, perhaps ""
	Flush() string        // what is still incomplete, as U+FFFD
}
