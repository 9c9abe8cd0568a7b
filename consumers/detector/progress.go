package detector

import "sync/atomic"

// progress is how far a run has come. Other goroutines read it.
type progress struct {
	positions []atomic.Uint64 // of the last message that was judged, by partition
	leaving   atomic.Int64    // detections handed to the publisher and not answered by the bus
}

// Settled says whether the message at a position of a partition, and all before it
// that a run reads, were judged, and everything that followed was published; also when
// another process judges the partition. It may be called from any goroutine.
func (r *Detector) Settled(partition int, position uint64) bool {
	// In this order: what the message causes is counted before its position is stored.
	return (r.progress.positions[partition].Load() >= position || r.member.Elsewhere(partition)) &&
		len(r.aborts) == 0 && r.progress.leaving.Load() == 0
}
