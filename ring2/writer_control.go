package ring2

import (
	"fmt"
)

// SetModel says what the engine runs. A later model replaces the earlier one.
func (w *Writer) SetModel(m Model) error {
	if err := checkTexts(m.Name, m.Revision, m.WeightsDigest, m.Quantisation, m.Engine, m.EngineVersion); err != nil {
		return fmt.Errorf("set model: %w", err)
	}
	payload := AppendModel(nil, m)
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &aliveRecord{kind: KindModel, payload: payload}
	if err := w.alive.hold(r); err != nil {
		return fmt.Errorf("set model: %w", err)
	}
	if err := w.control(&queued{kind: KindModel, payload: payload, alive: r}); err != nil {
		w.alive.drop(r)
		return fmt.Errorf("set model: %w", err)
	}
	return nil
}

// DefineLayout announces what a capture holds and returns the layout's id, from
// 0 upward. Layouts never end.
func (w *Writer) DefineLayout(entries []LayoutEntry) (uint32, error) {
	if len(entries) == 0 || len(entries) > MaxLayoutEntries {
		return 0, fmt.Errorf("define layout: %d entries; want 1 to %d", len(entries), MaxLayoutEntries)
	}
	l := &Layout{Entries: append([]LayoutEntry(nil), entries...)}
	for i := range l.Entries {
		e := &l.Entries[i]
		e.Shape = append([]uint32(nil), e.Shape...)
		if e.ShardCount == 0 {
			e.ShardCount = 1
		}
		if err := e.check(); err != nil {
			return 0, fmt.Errorf("define layout: %w", err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.layouts) >= maxLayouts {
		return 0, fmt.Errorf("define layout: %d exist already", maxLayouts)
	}
	l.ID = uint32(len(w.layouts))
	payload := AppendLayout(nil, *l)
	r := &aliveRecord{kind: KindLayout, payload: payload}
	if err := w.alive.hold(r); err != nil {
		return 0, fmt.Errorf("define layout: %w", err)
	}
	if err := w.control(&queued{kind: KindLayout, payload: payload, alive: r}); err != nil {
		w.alive.drop(r)
		return 0, fmt.Errorf("define layout: %w", err)
	}
	w.layouts[l.ID] = l
	w.alive.layouts = append(w.alive.layouts, r)
	return l.ID, nil
}

// OpenRequest announces a sequence. Its number must be new in this epoch. After
// an error the sequence is not announced and must not be captured.
func (w *Writer) OpenRequest(r RequestOpen) error {
	err := checkTexts(r.ExternalID, r.EngineID, r.Tenant, r.Adapter, r.TraceParent)
	if len(r.Labels) > MaxLabels {
		err = fmt.Errorf("%d labels; at most %d", len(r.Labels), MaxLabels)
	}
	for i := 0; i < len(r.Labels) && err == nil; i++ {
		err = checkTexts(r.Labels[i].Key, r.Labels[i].Value)
	}
	if err != nil {
		return fmt.Errorf("open request %d: %w", r.Number, err)
	}
	payload := AppendRequestOpen(nil, r)
	w.mu.Lock()
	defer w.mu.Unlock()
	record, err := w.alive.open(r.Number, payload)
	if err != nil {
		return err
	}
	if err := w.control(&queued{kind: KindRequestOpen, payload: payload, alive: record}); err != nil {
		delete(w.alive.requests, r.Number)
		w.alive.drop(record)
		return fmt.Errorf("open request %d: %w", r.Number, err)
	}
	return nil
}

// EndRequest closes a sequence that was opened.
func (w *Writer) EndRequest(r RequestEnd) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	record := w.alive.requests[r.Number]
	if record == nil || record.endPending {
		return fmt.Errorf("end request %d: it is not open", r.Number)
	}
	record.endPending = true
	err := w.control(&queued{kind: KindRequestEnd, payload: AppendRequestEnd(nil, r), alive: record})
	if err != nil {
		// Its end will never be read; it is forgotten as if it had just been.
		w.alive.endRequest(record, w.core.claim)
		return fmt.Errorf("end request %d: %w", r.Number, err)
	}
	return nil
}

// Amend says what became of tokens of an earlier step.
func (w *Writer) Amend(a Amend) error {
	if len(a.Ranges) > MaxStepRanges {
		return fmt.Errorf("amend step %d: %d ranges; at most %d", a.Step, len(a.Ranges), MaxStepRanges)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.control(&queued{kind: KindAmend, step: a.Step, payload: AppendAmend(nil, a)})
}

func checkTexts(texts ...string) error {
	for _, s := range texts {
		if len(s) > MaxTextBytes {
			return fmt.Errorf("text %.20q... has %d bytes; at most %d", s, len(s), MaxTextBytes)
		}
	}
	return nil
}

// control puts a control record into the ring, or into the queue when there is
// no room. Its error means that the record is lost, but for the journal.
func (w *Writer) control(q *queued) error {
	if w.closing {
		return errClosed
	}
	if len(q.payload) > MaxControlBytes && q.kind != KindAmend {
		return fmt.Errorf("%s record has %d bytes; at most %d", q.kind, len(q.payload), MaxControlBytes)
	}
	q.ordinal = w.journal.ordinal()
	w.refresh()
	if w.flush() && w.put(q) {
		w.wakeReader()
		return nil
	}
	w.journal.append(q.ordinal, w.core.claim, q.kind, ObituaryNeverPut, q.payload)
	return w.queue.push(*q)
}

// refresh takes the reader's release word and forgets what it ends.
func (w *Writer) refresh() {
	w.core.refresh()
	w.alive.prune(w.core.release, w.core.claim)
}

// flush moves what waits into the ring and says whether nothing is left.
func (w *Writer) flush() bool { return w.queue.flush(w) }

func (w *Writer) fits(payloadBytes int) bool { return w.core.fitsControl(payloadBytes) }

// put writes a control record into the journal and then into the ring, when it
// has room, and notes what the record means for snapshots.
func (w *Writer) put(q *queued) bool {
	if !w.fits(len(q.payload)) {
		return false
	}
	if q.ordinal == 0 {
		q.ordinal = w.journal.ordinal()
	}
	w.journal.append(q.ordinal, w.core.claim, q.kind, 0, q.payload)
	seq, ok := w.core.putControl(q.kind, q.step, q.payload)
	if !ok {
		panic("BUG: a record that fits was not put")
	}
	switch q.kind {
	case KindModel:
		if w.alive.model != nil {
			w.alive.end(w.alive.model, seq)
		}
		w.alive.model = q.alive
		q.alive.publish(seq, q.ordinal)
	case KindLayout, KindRequestOpen:
		q.alive.publish(seq, q.ordinal)
	case KindRequestEnd:
		w.alive.endRequest(q.alive, seq)
	}
	return true
}

// wakeReader ends the wait of a reader that asked for it. Any goroutine may call
// it that keeps the memory alive.
func (w *Writer) wakeReader() {
	if w.core.wake() {
		w.memory.wake()
	}
}

// countLater takes over what detached copies counted.
func (w *Writer) countLater() {
	if n := w.abortedLater.Swap(0); n > 0 {
		w.core.counters.abortedRows += n
		w.core.storeCounters()
	}
}
