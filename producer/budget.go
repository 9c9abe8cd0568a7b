package producer

import (
	"sync"
	"time"
)

// budget is a token bucket of bytes. It holds at most one second's worth.
type budget struct {
	mu     sync.Mutex // a leaf
	perS   int64      // 0: no limit
	tokens float64
	last   time.Time
	now    func() time.Time
}

func newBudget(perS int64, now func() time.Time) *budget {
	return &budget{perS: perS, tokens: float64(perS), last: now(), now: now}
}

// take takes n bytes, or none and reports false.
func (b *budget) take(n int64) bool {
	if b.perS == 0 {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	b.tokens = min(float64(b.perS), b.tokens+now.Sub(b.last).Seconds()*float64(b.perS))
	b.last = now
	if float64(n) > b.tokens {
		return false
	}
	b.tokens -= float64(n)
	return true
}
