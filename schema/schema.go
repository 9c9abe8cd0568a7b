// Package schema defines what travels on the bus: five kinds of messages, each
// one self-contained Arrow IPC stream (schema and one record batch, little
// endian, no compression), whose schema metadata carry the identity of every
// row. SCHEMA.md documents each column and key. The package knows no bus.
package schema

import (
	"fmt"
	"strconv"
	"strings"
)

// Version is the major version of the format. A reader refuses any other.
const Version = 1

// Bounds of one message. A message beyond them is refused by both sides.
const (
	MaxMessageBytes  = 32 << 20 // the file store of the embedded bus takes no record above 32 MiB
	MaxRows          = 1 << 18
	MaxMetadataBytes = 8 << 20 // of the Arrow schema message: spans of MaxRows rows, each on its own, fit
	MaxMetadataKeys  = 64
	MaxStringBytes   = 64 << 10 // of one value of a metadata key other than sonde.spans
)

// Kind says what the rows of a message are.
type Kind string

// The five kinds.
const (
	KindVectors    Kind = "vectors"    // tensors, bit for bit
	KindStats      Kind = "stats"      // figures computed in the agent instead of the tensor
	KindRequests   Kind = "requests"   // opened and ended requests
	KindLedger     Kind = "ledger"     // facts: what was expected, and what became of it
	KindDetections Kind = "detections" // verdicts
)

// Hookless is the hook of the chains that belong to no hook: requests, ledger
// and detections. Their layer is -1.
const Hookless = "-"

// Cursor is a place in a chain. Cursors are ordered by (Seq, Row). In Prev and
// Last, Row is one past the last row. Zero is before everything.
type Cursor struct {
	Seq uint64
	Row uint32
}

// Less reports whether c stands before d.
func (c Cursor) Less(d Cursor) bool {
	return c.Seq < d.Seq || c.Seq == d.Seq && c.Row < d.Row
}

// String is "seq:row".
func (c Cursor) String() string { return string(c.append(nil)) }

func (c Cursor) append(b []byte) []byte {
	b = append(strconv.AppendUint(b, c.Seq, 10), ':')
	return strconv.AppendUint(b, uint64(c.Row), 10)
}

// ParseCursor reads what String wrote.
func ParseCursor(s string) (Cursor, error) {
	seq, row, ok := strings.Cut(s, ":")
	if !ok {
		return Cursor{}, fmt.Errorf("cursor %q has no colon; it is written seq:row", clip(s))
	}
	q, err := strconv.ParseUint(seq, 10, 64)
	if err != nil {
		return Cursor{}, fmt.Errorf("cursor %q: seq is no unsigned number", clip(s))
	}
	r, err := strconv.ParseUint(row, 10, 32)
	if err != nil {
		return Cursor{}, fmt.Errorf("cursor %q: row is no unsigned 32-bit number", clip(s))
	}
	return Cursor{Seq: q, Row: uint32(r)}, nil
}

// Span is a run of consecutive rows of one record.
type Span struct {
	Seq         uint64
	First, Rows uint32
}

// Start is the cursor of the span's first row.
func (s Span) Start() Cursor { return Cursor{Seq: s.Seq, Row: s.First} }

// End is the cursor one past the span's last row.
func (s Span) End() Cursor { return Cursor{Seq: s.Seq, Row: s.First + s.Rows} }

// Header is the Arrow schema metadata of a message.
type Header struct {
	Kind   Kind
	Tenant string
	Engine string // engine instance, shared by its ranks
	Rank   int
	Epoch  uint64 // random per start of a writer

	Hook       string // Hookless where rows belong to no hook
	Layer      int    // -1: none
	Shard      int
	ShardCount int
	DType      string // f32, f16, bf16, ...; vectors and stats
	Shape      []int  // of one row; empty for scalars. For ragged rows: of one of the row's elements
	Ragged     bool   // rows differ in length: vec is LargeBinary, else FixedSizeBinary

	Model         string
	Revision      string
	WeightsDigest string
	Quantisation  string
	EngineVersion string
	PolicyVersion string

	Prev  Cursor // everything of this chain in [Prev, first row) does not exist, was filtered, or was acknowledged before
	Spans []Span // rows held, ascending, not touching
}

// First is the cursor of the first row, Last the one past the last row. Both
// are zero for a header without spans.
func (h *Header) First() Cursor {
	if len(h.Spans) == 0 {
		return Cursor{}
	}
	return h.Spans[0].Start()
}

// Last is the cursor one past the last row.
func (h *Header) Last() Cursor {
	if len(h.Spans) == 0 {
		return Cursor{}
	}
	return h.Spans[len(h.Spans)-1].End()
}

// AddRow extends the spans by one row. Rows come in ascending (seq, row).
func (h *Header) AddRow(seq uint64, row uint32) {
	if n := len(h.Spans); n > 0 && h.Spans[n-1].Seq == seq && h.Spans[n-1].First+h.Spans[n-1].Rows == row {
		h.Spans[n-1].Rows++
		return
	}
	h.Spans = append(h.Spans, Span{Seq: seq, First: row, Rows: 1})
}

// Chain is the chain that the message belongs to.
func (h *Header) Chain() ChainKey {
	return ChainKey{Epoch: h.Epoch, Kind: h.Kind, Tenant: h.Tenant, Hook: h.Hook, Layer: h.Layer, Shard: h.Shard}
}

// ChainKey names a chain: the messages in which (seq, row) only ever rises.
type ChainKey struct {
	Epoch  uint64
	Kind   Kind
	Tenant string
	Hook   string
	Layer  int
	Shard  int
}

// String is "epoch.kind.tenant.hook.layer.shard": epoch as 16 hex digits, names
// escaped as in Subject.
func (k ChainKey) String() string {
	return fmt.Sprintf("%016x.%s.%s.%s.%d.%d", k.Epoch, escape(string(k.Kind)), escape(k.Tenant), escape(k.Hook),
		k.Layer, k.Shard)
}

// ParseChainKey reads what ChainKey.String wrote.
func ParseChainKey(s string) (ChainKey, error) {
	parts := strings.Split(s, ".")
	if len(parts) != 6 || len(parts[0]) != 16 {
		return ChainKey{}, fmt.Errorf("chain key %q is not epoch.kind.tenant.hook.layer.shard", clip(s))
	}
	epoch, err := strconv.ParseUint(parts[0], 16, 64)
	if err != nil {
		return ChainKey{}, fmt.Errorf("chain key %q: epoch is not 16 hex digits", clip(s))
	}
	var names [3]string
	for i := range names {
		if names[i], err = unescape(parts[1+i]); err != nil {
			return ChainKey{}, fmt.Errorf("chain key %q: %w", clip(s), err)
		}
	}
	layer, err := strconv.Atoi(parts[4])
	if err != nil {
		return ChainKey{}, fmt.Errorf("chain key %q: layer %q is no number", clip(s), clip(parts[4]))
	}
	shard, err := strconv.Atoi(parts[5])
	if err != nil {
		return ChainKey{}, fmt.Errorf("chain key %q: shard %q is no number", clip(s), clip(parts[5]))
	}
	return ChainKey{Epoch: epoch, Kind: Kind(names[0]), Tenant: names[1], Hook: names[2], Layer: layer,
		Shard: shard}, nil
}

// clip keeps hostile input from filling a log.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
