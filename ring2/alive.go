package ring2

import (
	"fmt"
	"slices"
)

// maxOpenRequests bounds the sequences that are open at once; at the bound,
// OpenRequest returns an error.
const maxOpenRequests = 1 << 16

// maxLayouts bounds the layouts of a writer; they never end.
const maxLayouts = 4096

// aliveRecord is a control record that still means something to a reader that
// attaches later: a model, a layout, an open request.
type aliveRecord struct {
	kind       Kind
	payload    []byte
	seq        uint64
	published  bool
	endSeq     uint64
	ended      bool // by the record at endSeq
	endPending bool // EndRequest was called
}

// aliveTable knows what a snapshot must say. A record is dropped from it when
// the record that ends it was released.
type aliveTable struct {
	model    *aliveRecord
	layouts  []*aliveRecord
	requests map[uint64]*aliveRecord
	ended    []*aliveRecord // in the order of endSeq
}

// end notes the record that ends r. prune forgets r once it is released.
func (t *aliveTable) end(r *aliveRecord, seq uint64) {
	r.endSeq, r.ended = seq, true
	t.ended = append(t.ended, r)
}

func (t *aliveTable) prune(release, claim uint64) {
	n := 0
	for n < len(t.ended) && released(t.ended[n].endSeq, release, claim) {
		n++
	}
	if n > 0 {
		t.ended = slices.Delete(t.ended, 0, n)
	}
}

// released says whether release has passed a sequence number that was claimed.
// Both lie less than 2^63 behind claim.
func released(seq, release, claim uint64) bool { return claim-seq > claim-release }

// snapshot lists, in the order of the ring, what a reader that starts at release
// cannot see in the ring.
func (t *aliveTable) snapshot(release, claim uint64) []*aliveRecord {
	var out []*aliveRecord
	add := func(r *aliveRecord) {
		if r != nil && r.published && released(r.seq, release, claim) {
			out = append(out, r)
		}
	}
	add(t.model)
	for _, r := range t.layouts {
		add(r)
	}
	for _, r := range t.requests {
		if !r.ended {
			add(r)
		}
	}
	for _, r := range t.ended {
		add(r)
	}
	slices.SortFunc(out, func(a, b *aliveRecord) int {
		if claim-a.seq > claim-b.seq {
			return -1
		}
		return 1
	})
	return out
}

func (t *aliveTable) open(number uint64, payload []byte) (*aliveRecord, error) {
	if t.requests[number] != nil {
		return nil, fmt.Errorf("open request %d: it is open already; numbers are unique in an epoch", number)
	}
	if len(t.requests) >= maxOpenRequests {
		return nil, fmt.Errorf("open request %d: %d are open already", number, maxOpenRequests)
	}
	r := &aliveRecord{kind: KindRequestOpen, payload: payload}
	t.requests[number] = r
	return r, nil
}
