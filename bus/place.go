package bus

import "sync"

// place is where a subscription reads, whatever the broker.
type place struct {
	next uint64 // position wanted; 0 and FromNew until the stream was seen; of the reading goroutine

	mu          sync.Mutex // a leaf
	incarnation string     // "" until the stream was seen
}

// resolve says what "first", "new" and "any incarnation" mean, once the stream was
// seen.
func (p *place) resolve(info StreamInfo) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.incarnation == "" {
		p.incarnation = info.Incarnation
	}
	switch p.next {
	case 0:
		p.next = info.First
	case FromNew:
		p.next = info.Last + 1
	}
}

// belongs reports whether the subscription belongs to an incarnation.
func (p *place) belongs(incarnation string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.incarnation == "" || p.incarnation == incarnation
}
