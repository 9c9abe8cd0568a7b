package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sonde/bus"
	"sonde/lakehouse"
	"sonde/lakehouse/account"
	"sonde/schema"
)

// joiner keeps one account for each epoch.
type joiner struct {
	epochs   map[uint64]*Epoch
	builders map[uint64]*account.Builder
}

// builder is the account of an epoch, and notes whose it is.
func (j *joiner) builder(epoch uint64, engine string, rank int) *account.Builder {
	if j.builders[epoch] == nil {
		j.builders[epoch] = account.NewBuilder()
		j.epochs[epoch] = &Epoch{Epoch: fmt.Sprintf("%016x", epoch), Engine: strings.Clone(engine), Rank: rank}
	}
	return j.builders[epoch]
}

// readOn reads a partition from the lake's position to what is its end now.
func (j *joiner) readOn(ctx context.Context, b bus.Bus, partition int, from lakehouse.Source) (Partition, error) {
	out := Partition{Partition: partition, From: from.Next}
	info, err := b.Info(ctx, partition)
	if err != nil {
		return out, err
	}
	if from.Incarnation != "" && from.Incarnation != info.Incarnation {
		out.From = 0
		out.Note = "the stream was made anew since the lake last read it: it is read from its start"
	}
	if out.From < info.First {
		if out.From > 0 {
			out.Trimmed = info.First - out.From
		}
		out.From = info.First
	}
	out.To = out.From
	if info.Last < out.From || info.Messages == 0 {
		return out, nil
	}
	sub, err := b.Subscribe(ctx, bus.SubscribeOptions{Partition: partition, From: out.From, Incarnation: info.Incarnation})
	if err != nil {
		return out, err
	}
	defer sub.Close()
	for out.To <= info.Last {
		d, err := sub.Next(ctx)
		var trimmed *bus.TrimmedError
		if errors.As(err, &trimmed) {
			out.Note = "the materializer committed and trimmed while this was read: run it again"
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out.Messages++
		out.To = d.Seq + 1
		if err := j.message(d.Data); err != nil {
			out.Unread++
		}
	}
	return out, nil
}

// message takes what a message of the bus says of rows.
func (j *joiner) message(data []byte) error {
	b, err := schema.Decode(data)
	if err != nil {
		return err
	}
	h := &b.Header
	switch h.Kind {
	case schema.KindLedger:
		for i := range b.Len() {
			f := account.Fact{Epoch: h.Epoch, Engine: h.Engine, Rank: h.Rank, Tenant: h.Tenant, LedgerRow: b.Ledger(i)}
			if err := j.builder(h.Epoch, h.Engine, h.Rank).Fact(f); err != nil {
				return err
			}
		}
	case schema.KindVectors, schema.KindStats:
		to := j.builder(h.Epoch, h.Engine, h.Rank)
		for _, s := range h.Spans {
			for row := range s.Rows {
				to.OnBus(account.Row{Epoch: h.Epoch, Hook: h.Hook, Layer: h.Layer, Shard: h.Shard, Seq: s.Seq,
					Row: s.First + row})
			}
		}
	}
	return nil
}

// finish closes the accounts, and holds them against what the writers counted.
func (j *joiner) finish(stages []schema.StageCounts) []Epoch {
	offered := map[uint64]uint64{}
	for _, c := range stages {
		if id, err := strconv.ParseUint(c.Epoch, 16, 64); err == nil && id != 0 && c.Stage == schema.StageEngine {
			j.builder(id, c.Engine, c.Rank)
			offered[id] = max(offered[id], c.Rows["captured"])
		}
	}
	for id, b := range j.builders {
		e := j.epochs[id]
		e.Account = b.Finish()
		if told := e.Account.Expected + e.Account.Filtered; offered[id] > told {
			e.Untold = offered[id] - told
		}
	}
	var out []Epoch
	for _, e := range j.epochs {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b Epoch) int {
		return cmp.Or(cmp.Compare(a.Engine, b.Engine), cmp.Compare(a.Rank, b.Rank), cmp.Compare(a.Epoch, b.Epoch))
	})
	return out
}
