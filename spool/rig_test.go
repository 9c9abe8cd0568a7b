package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
)

func random(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for ctx := deadline(t); !holds(); time.Sleep(100 * time.Microsecond) {
		if ctx.Err() != nil {
			t.Fatal("never: " + what)
		}
	}
}

// Messages of the tests: kind 'd' and numbered rows, each with its priority, and
// ballast; kind 'f' and the numbers of rows that were taken out.
const (
	dataSubject = "sonde.v1.data"
	factSubject = "sonde.v1.fact"
)

type testRow struct {
	number   uint64
	priority int32
}

func dataMessage(rows []testRow, ballast int) Message {
	m := Message{Message: bus.Message{Subject: dataSubject, ID: fmt.Sprint(rows)}, Owner: "owner"}
	m.Data = []byte{'d', byte(len(rows))}
	for _, r := range rows {
		m.Data = binary.LittleEndian.AppendUint64(m.Data, r.number)
		m.Data = binary.LittleEndian.AppendUint32(m.Data, uint32(r.priority))
		if n := len(m.Rows); n > 0 && m.Rows[n-1].Priority == r.priority {
			m.Rows[n-1].Count++
		} else {
			m.Rows = append(m.Rows, Run{r.priority, 1})
		}
	}
	for i := range ballast * len(rows) {
		m.Data = append(m.Data, byte(i)^byte(rows[0].number))
	}
	return m
}

func rowsOf(data []byte) (out []testRow) {
	for i := range int(data[1]) {
		at := data[2+12*i:]
		out = append(out, testRow{binary.LittleEndian.Uint64(at), int32(binary.LittleEndian.Uint32(at[8:]))})
	}
	return out
}

func factMessage(rows []testRow) bus.Message {
	m := dataMessage(rows, 0)
	m.Data[0] = 'f'
	return bus.Message{Subject: factSubject, ID: "f" + m.ID, Data: m.Data}
}

func testLessen(m Message, priority int32) (*Message, []bus.Message, error) {
	var kept, out []testRow
	all := rowsOf(m.Data)
	for _, r := range all {
		if r.priority <= priority {
			out = append(out, r)
		} else {
			kept = append(kept, r)
		}
	}
	facts := []bus.Message{factMessage(out)}
	if len(kept) == 0 {
		return nil, facts, nil
	}
	less := dataMessage(kept, (len(m.Data)-2-12*len(all))/len(all))
	return &less, facts, nil
}

// event is a row that done was told of, or that was taken out of its message.
type event struct {
	testRow
	safe bool
}

// rig is a spool between a test and a bus in memory, and what it was told.
type rig struct {
	*testing.T
	bus *bustest.Bus
	o   Options
	s   *Spool

	mu      sync.Mutex
	sent    []testRow          // in the order of Publish
	of      map[uint64]bool    // rows of messages that were told to be safe
	spooled int                // messages of which done said that they are in the spool
	acked   int                // or acknowledged
	failed  []error            // by done
	settled map[Outcome]uint64 // rows
	refused []uint64           // rows of refused messages
	events  []event            // in their order
	counted uint64             // rows told to be in the spool
}

func newRig(t *testing.T, o Options) *rig {
	r := &rig{T: t, bus: bustest.New(), settled: map[Outcome]uint64{}, of: map[uint64]bool{}}
	t.Cleanup(func() { r.bus.Close() })
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	r.o = o
	r.open()
	t.Cleanup(func() { r.s.Close() })
	return r
}

// open opens the spool, as an agent that starts does.
func (r *rig) open() {
	r.Helper()
	o := r.o
	o.Bus = r.bus
	setDefault(&o.After, 5*time.Millisecond)
	setDefault(&o.SyncInterval, time.Millisecond)
	setDefault(&o.retry, 10*time.Millisecond)
	o.Handlers = Handlers{Lessen: func(m Message, priority int32) (*Message, []bus.Message, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, row := range rowsOf(m.Data) {
			if row.priority <= priority {
				r.events = append(r.events, event{row, false})
			}
		}
		return testLessen(m, priority)
	},
		Damaged: func(m Message) []bus.Message {
			var rows []testRow
			for _, number := range strings.Fields(strings.NewReplacer("{", " ", "[", " ", "]", " ", "}", " ").Replace(m.ID)) {
				var row testRow
				fmt.Sscan(number, &row.number)
				rows = append(rows, row)
			}
			return []bus.Message{factMessage(rows[:1])}
		},
		Refused: func(m Message, why error) []bus.Message {
			r.mu.Lock()
			defer r.mu.Unlock()
			if !errors.Is(why, bus.ErrRefused) {
				r.Errorf("refused because of %v", why)
			}
			for _, row := range rowsOf(m.Data) {
				r.refused = append(r.refused, row.number)
			}
			return []bus.Message{factMessage(rowsOf(m.Data))}
		},
		Settled: func(owner string, rows uint64, what Outcome) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.settled[what] += rows
			if owner != "owner" {
				r.Errorf("rows of %q are settled", owner)
			}
		}}
	s, err := Open(o)
	if err != nil {
		r.Fatal(err)
	}
	r.s = s
	r.mu.Lock()
	r.counted += s.Found()["owner"]
	r.mu.Unlock()
}

func (r *rig) publish(ctx context.Context, m Message) error {
	return r.s.Publish(ctx, m, func(seq uint64, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case err != nil:
			r.failed = append(r.failed, err)
			return
		case seq == 0:
			r.spooled++
			r.counted += m.RowCount()
		default:
			r.acked++
		}
		for _, row := range rowsOf(m.Data) {
			r.of[row.number] = true
			r.events = append(r.events, event{row, true})
		}
	})
}

// rows publishes messages of one row each.
func (r *rig) rows(from, to uint64, priority int32, ballast int) {
	r.Helper()
	for i := from; i < to; i++ {
		row := testRow{i, priority}
		r.mu.Lock()
		r.sent = append(r.sent, row)
		r.mu.Unlock()
		if err := r.publish(deadline(r.T), dataMessage([]testRow{row}, ballast)); err != nil {
			r.Fatal(err)
		}
	}
}

// answered waits until done was called for so many messages.
func (r *rig) answered(n int) {
	r.Helper()
	until(r.T, fmt.Sprintf("%d messages are answered", n), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.spooled+r.acked+len(r.failed) >= n
	})
}

// empty waits until the bus has everything.
func (r *rig) empty() {
	r.Helper()
	until(r.T, "the spool is empty", func() bool {
		st := r.s.Stats()
		return st.Bytes == 0 && st.Memory == 0
	})
}

// arrived is what the bus has: numbers of rows in the order of their first arrival,
// and those that facts name.
func (r *rig) arrived() (rows []uint64, named map[uint64]bool) {
	r.Helper()
	named = map[uint64]bool{}
	seen := map[uint64]bool{}
	for _, d := range r.bus.Messages() {
		for _, row := range rowsOf(d.Data) {
			if d.Data[0] == 'f' {
				named[row.number] = true
			} else if !seen[row.number] {
				seen[row.number] = true
				rows = append(rows, row.number)
			}
		}
	}
	return rows, named
}

// complete checks that each of the first n rows arrived, in order, or is named, and
// that everything that was told to be in the spool was settled.
func (r *rig) complete(n uint64) {
	r.Helper()
	rows, named := r.arrived()
	last := int64(-1)
	there := map[uint64]bool{}
	for _, number := range rows {
		if int64(number) <= last {
			r.Errorf("row %d arrives behind row %d", number, last)
		}
		last = int64(number)
		there[number] = true
	}
	for i := range n {
		if !there[i] && !named[i] {
			r.Errorf("row %d neither arrived nor is it named", i)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := uint64(len(r.refused))
	for _, rows := range r.settled {
		sum += rows
	}
	if sum != r.counted {
		r.Errorf("%d rows were in the spool, and %v and %d refused ones are settled", r.counted, r.settled, len(r.refused))
	}
}
