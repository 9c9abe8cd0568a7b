// Package tally is the ledger as a stream: each stage of the way tells the others on
// the bus, once a second, how many rows of which records it has and what became of
// them. Who joins what all stages tell with the tables knows where each row is.
package tally

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"sonde/bus"
	"sonde/schema"
)

// Period is the time between two tellings of a stage.
const Period = time.Second

// Tell broadcasts what gather returns, each second until ctx ends, and once more
// then. A broadcast is best effort: a broker that is away, and rows that changed
// between two calls, are told of a second later. member names this process.
func Tell(ctx context.Context, b bus.Bus, log *slog.Logger, gather func() []schema.StageCounts) {
	member := newMember()
	tick := time.NewTicker(Period)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			_ = tell(b, member, gather()) // the last words; who missed them reads the tables
			return
		case <-tick.C:
		}
		err := tell(b, member, gather())
		if err != nil && !failing {
			log.Debug("the counts of a stage reached nobody; they are told again each second", "error", err)
		}
		failing = err != nil
	}
}

func tell(b bus.Bus, member string, counts []schema.StageCounts) error {
	now := time.Now().UnixNano()
	for _, c := range counts {
		c.Member, c.WallNS = member, now
		data, err := c.Encode()
		if err != nil {
			continue // of a message whose engine has too long a name
		}
		if err := b.Broadcast(schema.CountsSubject, data); err != nil {
			return err
		}
	}
	return nil
}

func newMember() string {
	var id [8]byte
	rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// maxEpochs bounds the epochs of a Book. Beyond it, the one that has not changed for
// longest is forgotten; its rows are in the tables.
const maxEpochs = 256

// Book adds up the rows of messages, by the epoch that captured them. Any goroutine
// may use it.
type Book struct {
	stage string

	mu     sync.Mutex // a leaf
	epochs map[string]*page
	turn   uint64
}

// page is what a Book has of one epoch.
type page struct {
	counts  schema.StageCounts
	changed uint64 // turn of the last change
}

// NewBook makes the book of a stage.
func NewBook(stage string) *Book { return &Book{stage: stage, epochs: map[string]*page{}} }

// Add counts rows of a message in a class.
func (b *Book) Add(h *schema.Header, class string, rows uint64) {
	if rows == 0 || len(h.Spans) == 0 {
		return
	}
	id := fmt.Sprintf("%016x", h.Epoch)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn++
	p := b.epochs[id]
	if p == nil {
		b.makeRoom()
		p = &page{counts: schema.StageCounts{Stage: b.stage, Engine: h.Engine, Rank: h.Rank, Epoch: id,
			FromSeq: h.First().Seq, Rows: map[string]uint64{}}}
		b.epochs[id] = p
	}
	p.changed = b.turn
	p.counts.FromSeq = min(p.counts.FromSeq, h.First().Seq)
	p.counts.ToSeq = max(p.counts.ToSeq, h.Last().Seq+1)
	p.counts.Rows[class] += rows
}

func (b *Book) makeRoom() {
	if len(b.epochs) < maxEpochs {
		return
	}
	oldest := ""
	for id, p := range b.epochs {
		if oldest == "" || p.changed < b.epochs[oldest].changed {
			oldest = id
		}
	}
	delete(b.epochs, oldest)
}

// Counts are a copy of what the book holds, for Tell.
func (b *Book) Counts() []schema.StageCounts {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]schema.StageCounts, 0, len(b.epochs))
	for _, p := range b.epochs {
		c := p.counts
		c.Rows = make(map[string]uint64, len(p.counts.Rows))
		for class, rows := range p.counts.Rows {
			c.Rows[class] = rows
		}
		out = append(out, c)
	}
	return out
}
