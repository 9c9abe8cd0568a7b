package ring2

import (
	"cmp"
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
	number     uint64 // of a request
	ordinal    uint64 // in the journal
	seq        uint64
	published  bool
	endSeq     uint64 // of the record that ends it, once that is in the ring
	endPending bool   // EndRequest was called
}

func (r *aliveRecord) publish(seq, ordinal uint64) {
	r.seq, r.ordinal, r.published = seq, ordinal, true
}

// aliveTable knows what a snapshot must say. A record is dropped from it when
// the record that ends it was released.
type aliveTable struct {
	model    *aliveRecord
	layouts  []*aliveRecord
	requests map[uint64]*aliveRecord
	ended    []*aliveRecord // in the order of endSeq
	bytes    int            // payloads of all of the above
}

// hold counts a record that begins to live. What a snapshot may hold bounds it.
func (t *aliveTable) hold(r *aliveRecord) error {
	if t.bytes+len(r.payload) > maxSnapshotBytes {
		return fmt.Errorf("%d bytes of models, layouts and requests are alive already; at most %d", t.bytes,
			maxSnapshotBytes)
	}
	t.bytes += len(r.payload)
	return nil
}

func (t *aliveTable) drop(r *aliveRecord) { t.bytes -= len(r.payload) }

func (t *aliveTable) endRequest(r *aliveRecord, seq uint64) {
	delete(t.requests, r.number)
	t.end(r, seq)
}

// end notes the record that ends r. prune forgets r once it is released.
func (t *aliveTable) end(r *aliveRecord, seq uint64) {
	r.endSeq = seq
	t.ended = append(t.ended, r)
}

func (t *aliveTable) prune(release, claim uint64) {
	n := 0
	for n < len(t.ended) && released(t.ended[n].endSeq, release, claim) {
		n++
	}
	for _, r := range t.ended[:n] {
		t.drop(r)
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
	return t.all(func(r *aliveRecord) bool { return r.published && released(r.seq, release, claim) }, claim)
}

// all lists, in the order of the ring, the records that still mean something and
// that want wants.
func (t *aliveTable) all(want func(*aliveRecord) bool, claim uint64) []*aliveRecord {
	var out []*aliveRecord
	add := func(r *aliveRecord) {
		if r != nil && want(r) {
			out = append(out, r)
		}
	}
	add(t.model)
	for _, r := range t.layouts {
		add(r)
	}
	for _, r := range t.requests {
		add(r)
	}
	for _, r := range t.ended {
		add(r)
	}
	slices.SortFunc(out, func(a, b *aliveRecord) int { return cmp.Compare(claim-b.seq, claim-a.seq) })
	return out
}

func (t *aliveTable) open(number uint64, payload []byte) (*aliveRecord, error) {
	if t.requests[number] != nil {
		return nil, fmt.Errorf("open request %d: it is open already; numbers are unique in an epoch", number)
	}
	if len(t.requests) >= maxOpenRequests {
		return nil, fmt.Errorf("open request %d: %d are open already", number, maxOpenRequests)
	}
	r := &aliveRecord{kind: KindRequestOpen, payload: payload, number: number}
	if err := t.hold(r); err != nil {
		return nil, fmt.Errorf("open request %d: %w", number, err)
	}
	t.requests[number] = r
	return r, nil
}
