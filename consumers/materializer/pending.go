package materializer

import (
	"slices"
	"time"

	"sonde/lakehouse/commitlog"
	"sonde/lakehouse/table"
	"sonde/schema"
)

// pending is what was read since the last commit. Messages stay as they came until
// their files are written, so that a failed attempt can be repeated from memory.
type pending struct {
	source   commitlog.Source // Next: behind the last message that was read
	first    uint64           // position of the first message
	moved    bool             // source is not that of the last commit
	started  time.Time        // since when messages are open, or nothing came
	bytes    int64            // of messages with rows in refs
	rows     int
	messages int // read, with rows or without

	refs   map[table.Name][]table.Ref
	epochs map[table.Name]map[uint64]bool
	closed []uint64 // epochs whose closed fact is among refs
	taken  []takenRows
	letter []commitlog.DeadLetter
	totals commitlog.Totals

	files    map[table.Name]commitlog.File // written by an attempt to commit
	prepared *commitlog.Commit             // of an attempt; the next one repeats it
	forget   []uint64
}

// takenRows are rows of one message that the table did not have.
type takenRows struct {
	of   *schema.Header
	rows uint64
}

func newPending(source commitlog.Source) *pending {
	totals := commitlog.Totals{Rows: map[string]uint64{}}
	return &pending{source: source, started: time.Now(), refs: map[table.Name][]table.Ref{},
		epochs: map[table.Name]map[uint64]bool{}, totals: totals, files: map[table.Name]commitlog.File{}}
}

// due is when the next commit is.
func (p *pending) due(interval time.Duration) time.Time { return p.started.Add(interval) }

// read notes that a message was read.
func (p *pending) read(seq uint64) {
	if p.messages == 0 {
		p.first, p.started = seq, time.Now()
	}
	p.messages++
	p.source.Next, p.moved = seq+1, true
}

// add takes rows [first, first+rows) of a message.
func (p *pending) add(m *table.Message, first, rows int) {
	name := m.Table()
	for i := range rows {
		p.refs[name] = append(p.refs[name], table.Ref{Message: m, Index: first + i})
	}
	if p.epochs[name] == nil {
		p.epochs[name] = map[uint64]bool{}
	}
	p.epochs[name][m.Header.Epoch] = true
	p.rows += rows
	p.totals.Rows[string(name)] += uint64(rows)
}

// epochsOf lists the epochs of a table's rows.
func (p *pending) epochsOf(name table.Name) []string {
	out := make([]string, 0, len(p.epochs[name]))
	for id := range p.epochs[name] {
		out = append(out, epochText(id))
	}
	slices.Sort(out)
	return out
}

func epochTexts(ids []uint64) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = epochText(id)
	}
	return out
}
