package producer

import (
	"fmt"
	"sync"
)

// Reasons of rows that were dropped in the agent, beside those of the ring.
const (
	reasonBudget         = "budget"
	reasonDeadLetterFull = "dead_letter_full"
	reasonUnknownRequest = "unknown_request"
	reasonUnnamed        = "unnamed"
	reasonCorrupt        = "corrupt"
	reasonOversize       = "oversize"
	reasonPolicy         = "policy"
	reasonSpoolFull      = "spool_full"
	reasonSpoolDamaged   = "spool_damaged"
)

// Counts is the live ledger in rows that the policy chose. At every moment
// Captured = Acknowledged + sum of Dropped + Aborted + Lost + DeadLettered + InFlight.
// Filtered rows stand beside it.
type Counts struct {
	Captured     uint64
	Acknowledged uint64
	Dropped      map[string]uint64 // by reason
	Aborted      uint64
	Lost         uint64
	DeadLettered uint64
	InFlight     uint64
	Filtered     uint64
}

// DroppedRows is the sum over all reasons.
func (c *Counts) DroppedRows() uint64 {
	var n uint64
	for _, v := range c.Dropped {
		n += v
	}
	return n
}

// Balance is an error when the law does not hold.
func (c *Counts) Balance() error {
	sum := c.Acknowledged + c.DroppedRows() + c.Aborted + c.Lost + c.DeadLettered + c.InFlight
	if sum != c.Captured {
		return fmt.Errorf("captured %d rows, but acknowledged %d + dropped %d + aborted %d + lost %d + dead-lettered %d + "+
			"in flight %d = %d", c.Captured, c.Acknowledged, c.DroppedRows(), c.Aborted, c.Lost, c.DeadLettered, c.InFlight,
			sum)
	}
	return nil
}

func (c *Counts) add(o *Counts) {
	c.Captured += o.Captured
	c.Acknowledged += o.Acknowledged
	c.Aborted += o.Aborted
	c.Lost += o.Lost
	c.DeadLettered += o.DeadLettered
	c.InFlight += o.InFlight
	c.Filtered += o.Filtered
	for reason, n := range o.Dropped {
		c.Dropped[reason] += n
	}
}

// account is the live ledger of one rank. Each method moves rows between
// classes in one step, so that the law holds at every read. Its lock is a leaf.
type account struct {
	mu sync.Mutex
	c  Counts
}

func newAccount() *account { return &account{c: Counts{Dropped: map[string]uint64{}}} }

func (a *account) captured(rows uint64) {
	a.mu.Lock()
	a.c.Captured += rows
	a.c.InFlight += rows
	a.mu.Unlock()
}

func (a *account) capturedAborted(rows uint64) {
	a.mu.Lock()
	a.c.Captured += rows
	a.c.Aborted += rows
	a.mu.Unlock()
}

func (a *account) capturedLost(rows uint64) {
	a.mu.Lock()
	a.c.Captured += rows
	a.c.Lost += rows
	a.mu.Unlock()
}

func (a *account) capturedDropped(reason string, rows uint64) {
	if rows == 0 {
		return
	}
	a.mu.Lock()
	a.c.Captured += rows
	a.c.Dropped[reason] += rows
	a.mu.Unlock()
}

func (a *account) filtered(rows uint64) {
	a.mu.Lock()
	a.c.Filtered += rows
	a.mu.Unlock()
}

func (a *account) acknowledged(rows uint64) {
	a.mu.Lock()
	a.leave(rows)
	a.c.Acknowledged += rows
	a.mu.Unlock()
}

func (a *account) deadLettered(rows uint64) {
	a.mu.Lock()
	a.leave(rows)
	a.c.DeadLettered += rows
	a.mu.Unlock()
}

func (a *account) droppedInFlight(reason string, rows uint64) {
	a.mu.Lock()
	a.leave(rows)
	a.c.Dropped[reason] += rows
	a.mu.Unlock()
}

// handOver gives rows in flight to another account.
func (a *account) handOver(rows uint64) {
	a.mu.Lock()
	a.leave(rows)
	a.c.Captured -= rows
	a.mu.Unlock()
}

func (a *account) leave(rows uint64) {
	if rows > a.c.InFlight {
		panic(fmt.Sprintf("BUG: %d rows leave and %d are in flight", rows, a.c.InFlight))
	}
	a.c.InFlight -= rows
}

// returned takes back what is in flight: it stays in its ring, and whoever reads
// it again counts it again.
func (a *account) returned() {
	a.mu.Lock()
	a.c.Captured -= a.c.InFlight
	a.c.InFlight = 0
	a.mu.Unlock()
}

// surrendered moves what is in flight to lost: nobody will read it again.
func (a *account) surrendered() {
	a.mu.Lock()
	a.c.Lost += a.c.InFlight
	a.c.InFlight = 0
	a.mu.Unlock()
}

func (a *account) snapshot() Counts {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.c
	c.Dropped = make(map[string]uint64, len(a.c.Dropped))
	for reason, n := range a.c.Dropped {
		c.Dropped[reason] = n
	}
	return c
}
