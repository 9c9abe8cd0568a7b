package account

import (
	"math/rand/v2"
	"testing"

	"sonde/schema"
)

// rowModel judges a ledger with one map entry per row, as nobody would who has
// ten million of them.
type rowModel struct {
	*ledger
	r        *rand.Rand
	closed   bool
	want     Account
	expected map[modelRow]string // class of a row that is not stored
	copies   map[modelRow]int
}

type modelRow struct {
	entry int
	seq   uint64
	row   uint32
}

// step expects two ranges, and sometimes tells the same twice.
func (m *rowModel) step(seq uint64) {
	first := int32(m.r.IntN(70))
	for place := uint32(0); place < 4; place += 2 {
		f := expect(seq, place, seq+1, first, int32(m.r.IntN(80)))
		f.Stride = int32(1 + m.r.IntN(2)*m.r.IntN(4))
		class := []string{"", "budget", "ring"}[m.r.IntN(3)]
		if class == "ring" {
			f.Outcome, f.Reason, f.CaptureSeq = schema.OutcomeDropped, "no_slot", 0
			m.want.Expected += f.Rows
			if f.Rows > 0 {
				m.want.Dropped["no_slot"] += f.Rows
			}
		}
		for range 1 + m.r.IntN(2) {
			m.must(f)
		}
		if class == "budget" {
			d := f
			d.Fact, d.Row, d.Reason, d.Outcome = schema.FactDropped, f.Row+1, "budget", ""
			m.must(d)
		}
		for k := range f.Count {
			for en := range all {
				if class != "ring" {
					m.expected[modelRow{en, seq + 1, f.FirstRow + uint32(k*f.Stride)}] = class
				}
			}
		}
		first += f.Count*f.Stride + int32(m.r.IntN(3))
	}
}

// storeAll stores most expected rows, some of them twice, and a few that nobody
// expects, in the random order of a map.
func (m *rowModel) storeAll() {
	for k := range m.expected {
		if m.r.IntN(10) > 0 {
			m.copies[k]++
		}
		if m.r.IntN(50) == 0 {
			m.copies[k]++
		}
	}
	for range 20 {
		m.copies[modelRow{m.r.IntN(3), uint64(m.r.IntN(64)), uint32(m.r.IntN(300))}]++
	}
	for k, n := range m.copies {
		for range n {
			m.store(k.seq, []int{k.entry}, k.row)
		}
	}
}

// judge works out the account.
func (m *rowModel) judge() {
	for k, n := range m.copies {
		if n == 0 {
			continue
		}
		m.want.Duplicated += uint64(n - 1)
		if _, ok := m.expected[k]; ok {
			m.want.Stored++
		} else if m.closed {
			m.want.Unasked++
		} else {
			m.want.Early++
		}
	}
	for k, class := range m.expected {
		m.want.Expected++
		switch {
		case m.copies[k] > 0:
		case class == "budget":
			m.want.Dropped["budget"]++
		case m.closed:
			m.want.Unexplained++
		default:
			m.want.InFlight++
		}
	}
}

func TestRandomLedgersAgreeWithAMapPerRow(t *testing.T) {
	seed := rand.Uint64()
	for round := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, round))
		m := rowModel{ledger: newLedger(t), r: r, closed: r.IntN(3) > 0, want: Account{Dropped: map[string]uint64{}},
			expected: map[modelRow]string{}, copies: map[modelRow]int{}}
		for seq := uint64(2); seq < 60; seq += 2 {
			m.step(seq)
		}
		m.storeAll()
		m.judge()
		if m.closed {
			m.close()
		}
		if m.ledger.want(m.want); t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
	}
}
