package lakehouse

import (
	"context"
	"reflect"
	"testing"

	"sonde/schema"
)

// A summary that mixes forms would send a reader to rows of another shape.
func TestHooksAreListedByFormWithAllTheirLayers(t *testing.T) {
	b := newBuilder(t)
	row := func(seq uint64, bytes int) schema.VectorRow {
		return schema.VectorRow{Seq: seq, Request: "r", Vec: make([]byte, bytes)}
	}
	b.vectors(1, "q", 1, "bf16", []int{2, 2}, row(1, 8), row(2, 8))
	b.vectors(1, "q", 0, "bf16", []int{2, 2}, row(1, 8))
	b.commit()
	b.vectors(2, "q", 0, "f32", []int{4}, row(1, 16))
	b.vectors(2, "token_ids", -1, "i32", nil, row(1, 4))
	b.commit()
	lake := b.open()
	got, err := lake.Hooks(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want := []Hook{
		{Table: "vectors", Hook: "q", Layers: []int{0, 1}, DType: "bf16", Shape: "2,2", Rows: 3},
		{Table: "vectors", Hook: "q", Layers: []int{0}, DType: "f32", Shape: "4", Rows: 1},
		{Table: "tokens", Hook: "token_ids", Layers: []int{-1}, DType: "i32", Rows: 1},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("hooks are %+v, want %+v", got, want)
	}
	rows := int64(0)
	for _, f := range lake.Files() {
		rows += f.Rows
	}
	if rows != 5 {
		t.Errorf("the files hold %d rows, want 5", rows)
	}
}
