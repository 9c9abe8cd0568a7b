package materializer

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"sonde/lakehouse/commitlog"
	"sonde/schema"
)

// Bounds of what is remembered about chains between commits. Nothing is stored
// twice at a bound: where memory ends, the table itself is asked.
const (
	maxChains   = 1 << 16          // of all partitions of the stream
	forgetAfter = 10 * time.Minute // idle time of an epoch that ended
)

// chains is the state of all chains.
type chains struct {
	byEpoch   map[uint64]*epoch
	count     int
	forgotten map[uint64]bool                  // epochs with rows in the table whose chains were dropped
	most      int                              // chains: the share of a partition of maxChains
	inTable   func(epoch uint64) (bool, error) // whether the table may have rows of an epoch
	elsewhere func(epoch uint64) bool          // whether another partition has, or had, rows of an epoch
	now       func() time.Time
}

// epoch is the chains of one writer.
type epoch struct {
	chains  map[schema.ChainKey]*chain
	touched time.Time // when a row last came
	closed  bool      // its closed fact came
	askAll  bool      // its chains were forgotten once
}

// newChains reads the states in the log, of one of the partitions of the stream.
func newChains(s *commitlog.Partition, partitions int, now func() time.Time) (*chains, error) {
	c := &chains{byEpoch: map[uint64]*epoch{}, forgotten: map[uint64]bool{}, most: maxChains / partitions, now: now}
	for text, state := range s.Chains {
		key, err := schema.ParseChainKey(text)
		if err != nil {
			return nil, fmt.Errorf("read the chains in the lake's log: %w", err)
		}
		chain, err := parseChain(state)
		if err != nil {
			return nil, fmt.Errorf("read chain %s in the lake's log: %w", text, err)
		}
		e := c.epoch(key.Epoch)
		e.chains[key], e.askAll = chain, e.askAll || chain.ask == askAll
		c.count++
	}
	for text := range s.Closed {
		id, err := parseEpoch(text)
		if err != nil {
			return nil, err
		}
		c.epoch(id).closed = true
	}
	for text := range s.Forgotten {
		id, err := parseEpoch(text)
		if err != nil {
			return nil, err
		}
		c.forgotten[id] = true
	}
	return c, nil
}

// divide notes epochs of which another partition has rows too: the stream was once
// divided in another way, and only the table knows which rows there are.
func (c *chains) divide(epochs []string) error {
	for _, text := range epochs {
		id, err := parseEpoch(text)
		if err != nil {
			return err
		}
		e := c.epoch(id)
		e.askAll = true
		for _, chain := range e.chains {
			chain.ask = askAll
		}
	}
	return nil
}

func epochText(id uint64) string { return fmt.Sprintf("%016x", id) }

func parseEpoch(text string) (uint64, error) {
	var id uint64
	if _, err := fmt.Sscanf(text, "%016x", &id); err != nil || epochText(id) != text {
		return 0, fmt.Errorf("read the lake's log: epoch %.40q is not 16 hex digits", text)
	}
	return id, nil
}

func (c *chains) epoch(id uint64) *epoch {
	e := c.byEpoch[id]
	if e == nil {
		e = &epoch{chains: map[schema.ChainKey]*chain{}, touched: c.now()}
		c.byEpoch[id] = e
	}
	return e
}

// of is the chain of a message.
func (c *chains) of(key schema.ChainKey) (*chain, error) {
	e := c.byEpoch[key.Epoch]
	if e == nil {
		// Beyond the bound of forgotten epochs, only the table knows the others. An epoch
		// of another partition came when the stream was divided in another way.
		unknown := c.forgotten[key.Epoch] || c.elsewhere(key.Epoch)
		if !unknown && len(c.forgotten) >= commitlog.MaxForgotten {
			var err error
			if unknown, err = c.inTable(key.Epoch); err != nil {
				return nil, err
			}
		}
		e = c.epoch(key.Epoch)
		e.askAll = unknown
	}
	e.touched = c.now()
	n := e.chains[key]
	if n == nil {
		n = &chain{}
		if e.askAll {
			n.ask = askAll
		}
		e.chains[key] = n
		c.count++
	}
	return n, nil
}

// changed is the new states of the chains that moved, for a commit in which
// everything seen becomes visible. Spans above the bound are forgotten.
func (c *chains) changed() (states map[string]string, shrunk int) {
	states = map[string]string{}
	for _, e := range c.byEpoch {
		for key, chain := range e.chains {
			if chain.dirty {
				shrunk += chain.shrink()
				states[key.String()] = chain.String()
			}
		}
	}
	return states, shrunk
}

// committed forgets what moved.
func (c *chains) committed() {
	for _, e := range c.byEpoch {
		for _, chain := range e.chains {
			chain.dirty = false
		}
	}
}

// forgettable lists the epochs whose chains should be dropped: those that ended,
// or were forgotten before and came up again, once they are idle; and above the
// bound, the ones that are idle for longest.
func (c *chains) forgettable() []uint64 {
	idle := c.now().Add(-forgetAfter)
	var out []uint64
	chosen := map[uint64]bool{}
	left := c.count
	ids := slices.SortedFunc(maps.Keys(c.byEpoch), func(a, b uint64) int {
		return cmp.Or(c.byEpoch[a].touched.Compare(c.byEpoch[b].touched), cmp.Compare(a, b))
	})
	for _, id := range ids {
		e := c.byEpoch[id]
		over := e.closed || c.forgotten[id]
		if over && e.touched.Before(idle) {
			out = append(out, id)
			chosen[id] = true
			left -= len(e.chains)
		}
	}
	for _, id := range ids {
		if left > c.most && len(c.byEpoch[id].chains) > 0 && !chosen[id] {
			out = append(out, id)
			left -= len(c.byEpoch[id].chains)
		}
	}
	return out
}

// forget drops the chains of epochs, after a commit that says so.
func (c *chains) forget(ids []uint64) {
	for _, id := range ids {
		c.count -= len(c.byEpoch[id].chains)
		delete(c.byEpoch, id)
		if len(c.forgotten) < commitlog.MaxForgotten {
			c.forgotten[id] = true
		}
	}
}
