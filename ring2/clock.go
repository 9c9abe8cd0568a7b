package ring2

import "time"

// Bounds of WallNS.
const (
	freshFor = time.Minute // what was captured before keeps the wall clock of the ring
	slewed   = time.Second // below, the wall clock was only slewed
)

// WallNS is the wall clock of a capture, in ns since 1970, as the engine knew it
// when it made the ring.
func (c Config) WallNS(captureNS uint64) int64 { return int64(captureNS + c.WallMinusMonoNS) }

// WallNS is the wall clock of a capture, in ns since 1970. When the wall clock was
// stepped since the engine made the ring, fresh captures get the new one: whether a
// request may still be stopped is decided by the age of its capture, and would else
// be decided wrongly until the engine starts anew.
func (s *Session) WallNS(captureNS uint64) int64 {
	return s.config.wallNS(captureNS, monotonicNS(), uint64(time.Now().UnixNano()))
}

// wallNS is Session.WallNS at a moment, given by both clocks.
func (c Config) wallNS(captureNS, mono, wall uint64) int64 {
	age, step := time.Duration(mono-captureNS), time.Duration(wall-mono-c.WallMinusMonoNS)
	// Of an engine in another time namespace, captures are not fresh: its monotonic
	// clock counts from elsewhere, and the difference is no step.
	if age >= 0 && age < freshFor && step.Abs() > slewed {
		return int64(captureNS + wall - mono)
	}
	return c.WallNS(captureNS)
}
