package producer

import (
	"testing"
	"time"
)

// Memory that is needed again and again must come from the pool; memory that a
// burst left behind must go.
func TestBuffersGoWhenNobodyNeedsThem(t *testing.T) {
	var b buffers
	now := time.Now()
	b.trim(now)
	for range 10 {
		b.put(make([]byte, 100, 1000), 1<<20)
	}
	now = now.Add(trimEvery)
	b.trim(now) // they came since the last one
	if len(b.free) != 10 || b.bytes != 10000 {
		t.Fatalf("%d buffers of %d bytes", len(b.free), b.bytes)
	}
	for range 3 {
		one, two := b.take(), b.take()
		if len(one) != 0 || cap(one) != 1000 {
			t.Fatalf("a buffer of %d of %d bytes", len(one), cap(one))
		}
		b.put(one, 1<<20)
		b.put(two, 1<<20)
	}
	b.trim(now.Add(trimEvery / 2)) // too early
	if len(b.free) != 10 {
		t.Errorf("%d buffers after half of the time", len(b.free))
	}
	now = now.Add(trimEvery)
	b.trim(now)
	if len(b.free) != 2 || b.bytes != 2000 {
		t.Errorf("%d buffers of %d bytes, and two were in use", len(b.free), b.bytes)
	}
	b.trim(now.Add(trimEvery))
	if len(b.free) != 0 || b.bytes != 0 || b.take() != nil {
		t.Errorf("%d buffers of %d bytes after an idle time", len(b.free), b.bytes)
	}
}

func TestBuffersAreBounded(t *testing.T) {
	var b buffers
	for range 10 {
		b.put(make([]byte, 300), 1000)
	}
	b.put(nil, 1000)
	if len(b.free) != 3 || b.bytes != 900 {
		t.Errorf("%d buffers of %d bytes; at most 1000", len(b.free), b.bytes)
	}
}
