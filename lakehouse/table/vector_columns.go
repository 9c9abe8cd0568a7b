package table

import (
	"github.com/apache/arrow-go/v18/parquet"
	pq "github.com/apache/arrow-go/v18/parquet/schema"

	"sonde/schema"
)

// A column of the vectors table has exactly one of text, i32, i64 and flag.
// Unsigned numbers are stored in signed columns bit by bit: not every reader of
// Parquet knows unsigned ones.
type vectorColumn struct {
	name string
	id   int32 // Parquet field id, the same for this name in all tables
	text func(m *Message, r *schema.VectorRow) string
	i32  func(m *Message, r *schema.VectorRow) int32
	i64  func(m *Message, r *schema.VectorRow) int64
	flag func(m *Message, r *schema.VectorRow) bool
}

// The two columns behind vectorColumns. Exactly one of them is set in each row.
const (
	vecID, vecElementID, rawID = 27, 28, 29
	vecColumn                  = "vec"
	vecLeaf                    = "vec.list.element"
	rawColumn                  = "raw"
)

var vectorColumns = []vectorColumn{
	{name: "tenant", id: 1, text: func(m *Message, _ *schema.VectorRow) string { return m.Header.Tenant }},
	{name: "epoch", id: 2, text: func(m *Message, _ *schema.VectorRow) string { return m.epoch }},
	{name: "engine", id: 3, text: func(m *Message, _ *schema.VectorRow) string { return m.Header.Engine }},
	{name: "rank", id: 4, i32: func(m *Message, _ *schema.VectorRow) int32 { return int32(m.Header.Rank) }},
	{name: "model", id: 5, text: func(m *Message, _ *schema.VectorRow) string { return m.Header.Model }},
	{name: "revision", id: 6, text: func(m *Message, _ *schema.VectorRow) string { return m.Header.Revision }},
	{name: "weights_digest", id: 7, text: func(m *Message, _ *schema.VectorRow) string { return m.Header.WeightsDigest }},
	{name: "quantisation", id: 8, text: func(m *Message, _ *schema.VectorRow) string { return m.Header.Quantisation }},
	{name: "engine_version", id: 9, text: func(m *Message, _ *schema.VectorRow) string { return m.Header.EngineVersion }},
	{name: "policy_version", id: 10, text: func(m *Message, _ *schema.VectorRow) string { return m.Header.PolicyVersion }},
	{name: "hook", id: 11, text: func(m *Message, _ *schema.VectorRow) string { return m.Header.Hook }},
	{name: "layer", id: 12, i32: func(m *Message, _ *schema.VectorRow) int32 { return int32(m.Header.Layer) }},
	{name: "shard", id: 13, i32: func(m *Message, _ *schema.VectorRow) int32 { return int32(m.Header.Shard) }},
	{name: "shard_count", id: 14, i32: func(m *Message, _ *schema.VectorRow) int32 { return int32(m.Header.ShardCount) }},
	{name: "seq", id: 15, i64: func(_ *Message, r *schema.VectorRow) int64 { return int64(r.Seq) }},
	{name: "row", id: 16, i64: func(_ *Message, r *schema.VectorRow) int64 { return int64(r.Row) }},
	{name: "number", id: 17, i64: func(_ *Message, r *schema.VectorRow) int64 { return int64(r.Number) }},
	{name: "request", id: 18, text: func(_ *Message, r *schema.VectorRow) string { return r.Request }},
	{name: "sample", id: 19, i32: func(_ *Message, r *schema.VectorRow) int32 { return r.Sample }},
	{name: "position", id: 20, i32: func(_ *Message, r *schema.VectorRow) int32 { return r.Position }},
	{name: "pass", id: 21, i32: func(_ *Message, r *schema.VectorRow) int32 { return r.Pass }},
	{name: "phase", id: 22, i32: func(_ *Message, r *schema.VectorRow) int32 { return int32(r.Phase) }},
	{name: "capture_ns", id: 23, i64: func(_ *Message, r *schema.VectorRow) int64 { return r.CaptureNS }},
	{name: "dtype", id: 24, text: func(m *Message, _ *schema.VectorRow) string { return m.Header.DType }},
	{name: "shape", id: 25, text: func(m *Message, _ *schema.VectorRow) string { return m.shape }},
	{name: "ragged", id: 26, flag: func(m *Message, _ *schema.VectorRow) bool { return m.Header.Ragged }},
}

// numberColumns are dictionary-encoded like the texts: they repeat.
var numberColumns = map[string]bool{"rank": true, "layer": true, "shard": true, "shard_count": true, "number": true,
	"sample": true, "pass": true, "phase": true, "capture_ns": true}

// vectorsNode is the Parquet schema of the vectors table.
func vectorsNode() (*pq.GroupNode, error) {
	var fields pq.FieldList
	add := func(n pq.Node, err error) error {
		fields = append(fields, n)
		return err
	}
	for _, c := range vectorColumns {
		var err error
		switch {
		case c.text != nil:
			err = add(pq.NewPrimitiveNodeLogical(c.name, parquet.Repetitions.Required, pq.StringLogicalType{},
				parquet.Types.ByteArray, 0, c.id))
		case c.i32 != nil:
			err = add(pq.NewInt32Node(c.name, parquet.Repetitions.Required, c.id), nil)
		case c.i64 != nil:
			err = add(pq.NewInt64Node(c.name, parquet.Repetitions.Required, c.id), nil)
		default:
			err = add(pq.NewBooleanNode(c.name, parquet.Repetitions.Required, c.id), nil)
		}
		if err != nil {
			return nil, err
		}
	}
	element := pq.NewFloat32Node("element", parquet.Repetitions.Required, vecElementID)
	list, err := pq.NewGroupNode("list", parquet.Repetitions.Repeated, pq.FieldList{element}, -1)
	if err != nil {
		return nil, err
	}
	if err := add(pq.NewGroupNodeLogical(vecColumn, parquet.Repetitions.Optional, pq.FieldList{list},
		pq.NewListLogicalType(), vecID)); err != nil {
		return nil, err
	}
	if err := add(pq.NewByteArrayNode(rawColumn, parquet.Repetitions.Optional, rawID), nil); err != nil {
		return nil, err
	}
	return pq.NewGroupNode("vectors", parquet.Repetitions.Required, fields, -1)
}
