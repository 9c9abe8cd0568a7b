package detector

import "sync/atomic"

// progress is how far a run has come. Other goroutines read it.
type progress struct {
	position atomic.Uint64 // of the last message that was judged
	leaving  atomic.Int64  // detections handed to the publisher and not answered by the bus
}

// Settled says whether the message at a position of the stream, and all before it
// that a run reads, were judged, and everything that followed was published. It may
// be called from any goroutine.
func (r *Detector) Settled(position uint64) bool {
	// In this order: what the message causes is counted before its position is stored.
	return r.progress.position.Load() >= position && len(r.aborts) == 0 && r.progress.leaving.Load() == 0
}
