// Package audit says where each captured row is: it joins what the tables hold, what
// the bus holds beyond them, and what each stage of the way tells about itself.
package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"sonde/bus"
	"sonde/lakehouse"
	"sonde/lakehouse/account"
	"sonde/schema"
)

// Options say what to join.
type Options struct {
	Lake   string
	Bus    bus.Bus
	Listen time.Duration // how long the stages are listened to, which tell each second
}

// Report is where the rows of each epoch are. The accounts are of one commit of the
// lake and the stream behind it; stages tell what they had in the seconds before.
type Report struct {
	LakeVersion uint64               `json:"lake_version"`
	Epochs      []Epoch              `json:"epochs"` // by engine, rank and first record
	Partitions  []Partition          `json:"partitions"`
	Stages      []schema.StageCounts `json:"stages"` // the latest of each process, by engine, rank, epoch and way
}

// Epoch is one writer: one start of one rank of an engine.
type Epoch struct {
	Epoch   string           `json:"epoch"`
	Engine  string           `json:"engine"`
	Rank    int              `json:"rank"`
	Account *account.Account `json:"account"`
	// Untold are rows that the writer has offered and no fact tells of yet: they are
	// in the ring or on their way through the agent. 0 when the engine's stage is silent.
	Untold uint64 `json:"untold"`
}

// Partition is what the bus holds and the table does not.
type Partition struct {
	Partition int    `json:"partition"`
	From      uint64 `json:"from"` // position of the table
	To        uint64 `json:"to"`   // one past the last message that was read
	Messages  uint64 `json:"messages"`
	Unread    uint64 `json:"undecodable"`
	Trimmed   uint64 `json:"trimmed"` // positions that are gone and that the table never had
	Note      string `json:"note,omitempty"`
}

// Run joins. It fails when the lake or the bus cannot be read; what does not add up
// is found by Report.Balance.
func Run(ctx context.Context, o Options) (*Report, error) {
	stages, err := listen(ctx, o)
	if err != nil {
		return nil, err
	}
	lake, err := lakehouse.Open(o.Lake)
	if err != nil {
		return nil, err
	}
	j := &joiner{epochs: map[uint64]*Epoch{}, builders: map[uint64]*account.Builder{}}
	if err := lake.Tell(ctx, j.builder); err != nil {
		return nil, err
	}
	r := &Report{LakeVersion: lake.Version(), Stages: stages}
	for p := range o.Bus.Partitions() {
		part, err := j.readOn(ctx, o.Bus, p, lake.Sources()[p])
		if err != nil {
			return nil, fmt.Errorf("read partition %d behind the lake: %w", p, err)
		}
		r.Partitions = append(r.Partitions, part)
	}
	r.Epochs = j.finish(stages)
	return r, nil
}

// listen collects the latest counts of each stage, process and epoch.
func listen(ctx context.Context, o Options) ([]schema.StageCounts, error) {
	type key struct{ stage, member, engine, epoch string }
	latest := map[key]schema.StageCounts{}
	heard := make(chan schema.StageCounts)
	ctx, cancel := context.WithTimeout(ctx, o.Listen)
	defer cancel()
	stop, err := o.Bus.Listen(schema.CountsSubject, func(data []byte) {
		c, err := schema.ParseStageCounts(data)
		if err != nil {
			return // of another version, or of a stranger: the tables do not need it
		}
		select {
		case heard <- c:
		case <-ctx.Done():
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listen to the stages: %w", err)
	}
	defer stop()
	for {
		select {
		case c := <-heard:
			if k := (key{c.Stage, c.Member, c.Engine, c.Epoch}); len(latest) < maxTold || latest[k].Stage != "" {
				latest[k] = c
			}
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			return slices.SortedFunc(maps.Values(latest), byWay), nil
		}
	}
}

// maxTold bounds the counts that are remembered.
const maxTold = 1 << 16

var way = []string{schema.StageEngine, schema.StageAgent, schema.StageSpool, schema.StageMaterializer,
	schema.StageDetector}

func byWay(a, b schema.StageCounts) int {
	return cmp.Or(cmp.Compare(a.Engine, b.Engine), cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Epoch, b.Epoch),
		cmp.Compare(slices.Index(way, a.Stage), slices.Index(way, b.Stage)), cmp.Compare(a.Stage, b.Stage),
		cmp.Compare(a.Member, b.Member))
}

// Balance is an error when a law does not hold, or a row is stored twice, stored
// unasked, unexplained, or was trimmed away before the table had it.
func (r *Report) Balance() error {
	var defects []error
	for _, e := range r.Epochs {
		if err := e.Account.Balance(); err != nil {
			defects = append(defects, fmt.Errorf("engine %s rank %d epoch %s: %w", e.Engine, e.Rank, e.Epoch, err))
		}
	}
	for _, p := range r.Partitions {
		if p.Trimmed > 0 {
			defects = append(defects, fmt.Errorf("partition %d: %d messages were trimmed before the table had them", p.Partition,
				p.Trimmed))
		}
	}
	return errors.Join(defects...)
}
