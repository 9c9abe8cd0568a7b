package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"sonde/bus"
	"sonde/lakehouse"
	"sonde/lakehouse/commitlog"
	"sonde/schema"
)

// Size of the load: chains of engines whose steps have up to so many rows.
const (
	engines     = 12
	rowsPerStep = 6
	width       = 64 // bytes of a row
	stepEvery   = 4 * time.Millisecond
)

// publisher is the agents of all engines.
type publisher struct {
	bus    bus.Bus
	r      *rand.Rand
	chains []*chain
	failed atomic.Pointer[error]
}

// chain is the rows of one engine: one record for each step.
type chain struct {
	header schema.Header
	steps  []uint32 // rows of record i+1
}

func newPublisher(ctx context.Context, url string, o *options) (*publisher, error) {
	b, err := bus.OpenNATS(ctx, bus.NATSOptions{URL: url, Stream: "SONDE", Partitions: o.partitions, MaxBytes: 1 << 30,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	p := &publisher{bus: b, r: rand.New(rand.NewPCG(o.seed, 2))}
	for i := range engines {
		p.chains = append(p.chains, &chain{header: schema.Header{Kind: schema.KindVectors, Tenant: "t",
			Engine: fmt.Sprint("e", i), Epoch: o.seed ^ uint64(i+1), Hook: "h", DType: "u8", Shape: []int{width},
			ShardCount: 1, Model: "m"}})
	}
	return p, nil
}

// run publishes until ctx ends. One message in five repeats steps of before, as those
// of a restarted agent do.
func (p *publisher) run(ctx context.Context) error {
	var last atomic.Int64
	tick := time.NewTicker(stepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return p.flush(&last)
		case <-tick.C:
		}
		c := p.chains[p.r.IntN(len(p.chains))]
		from := len(c.steps)
		if from > 0 && p.r.IntN(5) == 0 {
			from -= 1 + p.r.IntN(min(from, 20))
		}
		c.steps = append(c.steps, 1+p.r.Uint32N(rowsPerStep))
		data, err := c.message(from)
		if err != nil {
			return err
		}
		h, err := schema.DecodeHeader(data)
		if err != nil {
			return err
		}
		last.Add(1)
		m := bus.Message{Subject: schema.Subject(h), ID: schema.MessageID(h), Data: data}
		err = p.bus.Publish(context.WithoutCancel(ctx), m, func(_ uint64, err error) {
			if err != nil {
				p.failed.Store(&err)
			}
			last.Add(-1)
		})
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
}

// flush waits for all acknowledgements.
func (p *publisher) flush(open *atomic.Int64) error {
	for range 600 {
		if err := p.failed.Load(); err != nil {
			return fmt.Errorf("publish: %w", *err)
		}
		if open.Load() == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%d messages were not acknowledged within 30 s", open.Load())
}

// message is the steps from an index on.
func (c *chain) message(from int) ([]byte, error) {
	e, err := schema.NewVectorEncoder(c.header)
	if err != nil {
		return nil, err
	}
	for i := from; i < len(c.steps); i++ {
		for row := range c.steps[i] {
			seq := uint64(i + 1)
			if err := e.Append(schema.VectorRow{Seq: seq, Row: row, Number: 1, Request: "r", Position: int32(i),
				Vec: vecOf(c.header.Epoch, seq, row)}); err != nil {
				return nil, err
			}
		}
	}
	prev := schema.Cursor{}
	if from > 0 {
		prev = schema.Cursor{Seq: uint64(from), Row: c.steps[from-1]}
	}
	data, _, err := e.Encode(prev)
	return data, err
}

// vecOf is what a row holds: it follows from its identity alone.
func vecOf(epoch, seq uint64, row uint32) []byte {
	r := rand.New(rand.NewPCG(epoch, seq<<8|uint64(row)))
	out := make([]byte, 0, width)
	for len(out) < width {
		out = binary.LittleEndian.AppendUint64(out, r.Uint64())
	}
	return out
}

// stored waits until the dataset is at the end of each partition.
func (p *publisher) stored(ctx context.Context, lake string) error {
	const limit = 2 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		behind, err := p.behind(ctx, lake)
		if err != nil && !errors.Is(err, commitlog.ErrNoLake) {
			return err
		}
		if err == nil && behind == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the dataset is %d messages behind after %v, %v", behind, limit, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (p *publisher) behind(ctx context.Context, lake string) (n uint64, err error) {
	s, err := commitlog.Load(lake)
	if err != nil {
		return 0, err
	}
	for partition := range p.bus.Partitions() {
		info, err := p.bus.Info(ctx, partition)
		if err != nil {
			return 0, err
		}
		n += info.Last + 1 - min(info.Last+1, max(1, s.Sources()[partition].Next))
	}
	return n, nil
}

// judge compares the dataset with what was published.
func (p *publisher) judge(dir, happened string) error {
	lake, err := lakehouse.Open(dir)
	if err != nil {
		return err
	}
	type key struct {
		epoch, seq uint64
		row        uint32
	}
	found := map[key]int{}
	wrong := 0
	err = lake.Vectors(context.Background(), lakehouse.Query{}, func(v *lakehouse.Vector) error {
		found[key{v.Epoch, v.Seq, v.Row}]++
		if !slices.Equal(v.Raw, vecOf(v.Epoch, v.Seq, v.Row)) {
			wrong++
		}
		return nil
	})
	if err != nil {
		return err
	}
	expected, lost, twice := 0, 0, 0
	for _, c := range p.chains {
		for i, rows := range c.steps {
			for row := range rows {
				expected++
				k := key{c.header.Epoch, uint64(i + 1), row}
				if found[k] == 0 {
					lost++
				}
				twice += max(0, found[k]-1)
				delete(found, k)
			}
		}
	}
	fmt.Printf("%s\n%d rows published, %d lost, %d twice, %d with other bytes, %d that nobody published; version %d, "+
		"%d duplicates dropped\n", happened, expected, lost, twice, wrong, len(found), lake.Version(),
		lake.Totals().Duplicates)
	if lost+twice+wrong+len(found) > 0 || expected == 0 {
		return errors.New("the dataset is not what was published")
	}
	return nil
}
