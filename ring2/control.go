package ring2

import (
	"fmt"
	"slices"
)

// Bounds of control records that wait for room in the ring. At a bound, the
// record is refused with an error, counted, and kept in the journal only.
const (
	maxQueuedRecords = 8192
	maxQueuedBytes   = 8 << 20
	missingPerRecord = 256 // ranges of one MISSING record
)

// queued is a control record that waits for room.
type queued struct {
	kind    Kind
	step    uint64
	payload []byte
	alive   *aliveRecord // what opens or ends with it, else nil
	ordinal uint64       // in the journal
}

// controlQueue keeps what did not even fit into the reserve. It is flushed in an
// order that keeps every reference behind what it refers to: openings, then the
// rows that are missing, then amendments and ends.
type controlQueue struct {
	opens, ends []queued
	bytes       int
	missing     missingSet
	lost        uint64 // records refused
}

func (q *controlQueue) empty() bool {
	return len(q.opens) == 0 && len(q.ends) == 0 && len(q.missing.ranges) == 0
}

func (q *controlQueue) records() int { return len(q.opens) + len(q.ends) + len(q.missing.ranges) }

func (q *controlQueue) push(r queued) error {
	if len(q.opens)+len(q.ends) >= maxQueuedRecords || q.bytes+len(r.payload) > maxQueuedBytes {
		q.lost++
		return fmt.Errorf("queue %s record: %d records with %d bytes wait already; the reader does not keep up", r.kind,
			len(q.opens)+len(q.ends), q.bytes)
	}
	q.bytes += len(r.payload)
	if r.kind == KindAmend || r.kind == KindRequestEnd {
		q.ends = append(q.ends, r)
	} else {
		q.opens = append(q.opens, r)
	}
	return nil
}

// controlRing takes control records that fit.
type controlRing interface {
	fits(payloadBytes int) bool
	put(q *queued) bool // false, and nothing happened, when it does not fit
}

// flush moves as much as fits into the ring and says whether nothing is left.
func (q *controlQueue) flush(ring controlRing) bool {
	if q.empty() {
		return true
	}
	if !q.flushList(&q.opens, ring) {
		return false
	}
	for len(q.missing.ranges) > 0 {
		n := min(missingPerRecord, len(q.missing.ranges))
		// Asked first, because the payload is garbage if it does not fit.
		if !ring.fits(missingBytes(n)) {
			return false
		}
		payload := AppendMissing(nil, Missing{Ranges: q.missing.ranges[:n]})
		ring.put(&queued{kind: KindMissing, payload: payload})
		q.missing.forget(n)
	}
	return q.flushList(&q.ends, ring)
}

func (q *controlQueue) flushList(list *[]queued, ring controlRing) bool {
	for i := range *list {
		r := &(*list)[i]
		if !ring.put(r) {
			*list = slices.Delete(*list, 0, i)
			return false
		}
		q.bytes -= len(r.payload)
	}
	clear(*list)
	*list = (*list)[:0]
	return true
}
