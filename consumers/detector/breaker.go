package detector

// A breaker keeps a detector that went wrong from stopping everything: when more
// than a share of the last requests were to be stopped, it opens and stays open
// until the process starts anew, because somebody has to look. Alerts go on.
type breaker struct {
	rate    float64
	stopped [breakerWindow]bool
	begun   uint64 // requests
	stops   int    // of those in the window
	open    bool
}

const (
	breakerWindow = 100 // requests
	breakerLeast  = 20  // the share is never taken of fewer requests
	breakerStops  = 3   // so many stops open no breaker, however low the share
)

// begin counts a request and returns its slot.
func (b *breaker) begin() uint64 {
	i := b.begun % breakerWindow
	if b.stopped[i] {
		b.stops--
	}
	b.stopped[i] = false
	b.begun++
	return b.begun - 1
}

// stop counts a request that is to be stopped, and reports whether this one opened
// the breaker.
func (b *breaker) stop(slot uint64) (opened bool) {
	i := slot % breakerWindow
	if b.begun-slot > breakerWindow || b.stopped[i] {
		return false
	}
	b.stopped[i] = true
	b.stops++
	of := max(min(b.begun, breakerWindow), breakerLeast)
	if b.open || float64(b.stops) <= max(breakerStops, b.rate*float64(of)) {
		return false
	}
	b.open = true
	return true
}
