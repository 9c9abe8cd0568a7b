package main

import (
	"bytes"
	"context"
	"testing"

	"sonde/schema"
)

// A benchmark of something that makes wrong messages measures nothing.
func TestWhatIsMeasuredMakesRightMessages(t *testing.T) {
	r, err := newRig(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	for turn := range 2 {
		if err := r.fill(); err != nil {
			t.Fatal(err)
		}
		const size = 256 << 10
		messages, err := r.drain(context.Background(), size)
		if err != nil {
			t.Fatal(err)
		}
		if len(messages) != fillSteps*stepBytes/size {
			t.Errorf("%d messages", len(messages))
		}
		seen := map[[3]int]bool{}
		for _, m := range messages {
			b, err := schema.Decode(m)
			if err != nil {
				t.Fatal(err)
			}
			for i := range b.Len() {
				v := b.Vector(i)
				if !bytes.Equal(v.Vec, r.pattern[int(v.Row)*rowBytes:][:rowBytes]) || v.Request != requestID(int(v.Row)) {
					t.Fatalf("turn %d: row %d of request %s holds other bytes", turn, v.Row, v.Request)
				}
				seen[[3]int{b.Header.Layer, int(v.Number), int(v.Position)}] = true
			}
		}
		if len(seen) != fillSteps*sequences*hooks {
			t.Errorf("turn %d: %d different rows", turn, len(seen))
		}
		batches, err := r.batches(messages)
		if err != nil {
			t.Fatal(err)
		}
		r.copyRows()
		for at := 0; at < len(r.target); at += len(r.pattern) {
			if !bytes.Equal(r.target[at:at+len(r.pattern)], r.pattern) {
				t.Fatalf("memcpy copied something else to byte %d", at)
			}
		}
		if err := r.writeBatches(batches); err != nil {
			t.Fatal(err)
		}
		if b, err := schema.Decode(r.out[0]); err != nil || b.Len() != size/rowBytes {
			t.Errorf("arrow-go's message: %v", err)
		}
	}
}
