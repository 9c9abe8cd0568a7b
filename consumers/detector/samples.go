package detector

import (
	"fmt"
	"strings"
	"time"

	"sonde/schema"
)

// sampleKey names one sample of one request. The epoch is that of the engine: a
// number means nothing outside it.
type sampleKey struct {
	tenant string
	epoch  uint64
	number uint64
}

// sample is what the runtime knows of one sample of one request. Its texts are
// copies: rows alias their message.
type sample struct {
	key      sampleKey
	part     *part
	request  string
	sample   int32
	engine   string
	rank     int
	opened   bool // its opening was read: the fields below are known
	engineID string
	adapter  string
	prompt   int32 // tokens; -1: unknown
	ended    bool
	length   int32    // tokens, once ended
	tracks   []*Track // by detector; nil before its first row
	slots    []uint64 // of the detector's circuit breaker
}

// find returns the state of a sample, made anew when nothing is known of it.
func (r *Detector) find(p *part, h *schema.Header, number uint64, request string, index int32, now time.Time) *sample {
	key := sampleKey{tenant: h.Tenant, epoch: h.Epoch, number: number}
	if s := r.lookup(key, now); s != nil {
		return s
	}
	key.tenant = strings.Clone(key.tenant)
	s := &sample{key: key, part: p, request: strings.Clone(request), sample: index, engine: strings.Clone(h.Engine),
		rank:   h.Rank,
		prompt: -1, tracks: make([]*Track, len(r.judges)), slots: make([]uint64, len(r.judges))}
	r.makeRoom(now)
	r.open.put(key, s, now)
	r.metrics.samples.Set(float64(r.open.len() + r.ended.len()))
	return s
}

// lookup is the state of a sample, or nil.
func (r *Detector) lookup(key sampleKey, now time.Time) *sample {
	if s, ok := r.open.get(key, now); ok {
		return s
	}
	s, _ := r.ended.get(key, now)
	return s
}

// makeRoom forgets the idlest sample when there are too many, an ended one first.
func (r *Detector) makeRoom(now time.Time) {
	if r.open.len()+r.ended.len() < maxSamples {
		return
	}
	if _, s, _, ok := r.ended.oldest(); ok {
		r.forget(s, "full", now)
		return
	}
	if _, s, _, ok := r.open.oldest(); ok {
		r.forget(s, "full", now)
	}
}

// forget drops the state of a sample. Rows that still come start a new one, whose
// coverage is below 1.
func (r *Detector) forget(s *sample, reason string, now time.Time) {
	r.open.remove(s.key)
	r.ended.remove(s.key)
	r.metrics.evictions.WithLabelValues(reason).Inc()
	r.metrics.samples.Set(float64(r.open.len() + r.ended.len()))
	if s.ended && s.opened {
		r.checkSeen(s, now)
	}
}

// unseenInARow is how many requests end without one row, and blindAfter how long no
// row comes, before a detector counts as blind. A policy that samples leaves out some.
const (
	unseenInARow = 3
	blindAfter   = time.Minute
)

// checkSeen notices a detector for which nothing arrives although requests run.
func (r *Detector) checkSeen(s *sample, now time.Time) {
	for _, j := range r.judges {
		b := j.bundle.Manifest.Binding
		wanted := b.Phase != PhaseDecode || s.length > s.prompt
		if s.tracks[j.index] != nil || !wanted || !adapterFits(b.Adapter, s.adapter) {
			continue
		}
		j.metrics.unseen.Inc()
		if j.unseen++; j.unseen >= unseenInARow && now.Sub(j.lastRow) >= blindAfter {
			r.raise(j, problemUnseen, fmt.Sprintf("detector %s sees requests but no row of %s layer %d of them: does the "+
				"engine call this hook, and does the policy let its rows pass?", j.bundle.Manifest.Name, b.Hook, b.Layer),
				time.Time{})
		}
	}
}

// sweep forgets what ended or went quiet, and problems that passed.
func (r *Detector) sweep(now time.Time) {
	for {
		_, s, used, ok := r.ended.oldest()
		if !ok || now.Sub(used) < endedTTL {
			break
		}
		r.forget(s, "ended", now)
	}
	for {
		_, s, used, ok := r.open.oldest()
		if !ok || now.Sub(used) < idleTTL {
			break
		}
		r.forget(s, "idle", now)
	}
	for _, j := range r.judges {
		r.mu.Lock()
		p, ok := r.problems[problemBinding+j.bundle.Manifest.Name]
		r.mu.Unlock()
		if ok && now.After(p.expires) {
			r.solve(j, problemBinding)
		}
	}
}

// event takes an opened or ended request.
func (r *Detector) event(p *part, h *schema.Header, row schema.RequestRow, now time.Time) {
	s := r.find(p, h, row.Number, row.Request, row.Sample, now)
	switch row.Event {
	case schema.EventOpen:
		if !s.opened {
			s.opened, s.engineID, s.adapter = true, strings.Clone(row.EngineID), strings.Clone(row.Adapter)
			s.prompt = max(row.PromptTokens, 0)
		}
	case schema.EventEnd:
		if !s.ended {
			s.ended, s.length = true, row.PromptTokens+row.GeneratedTokens
			if s.opened {
				s.length = s.prompt + row.GeneratedTokens
			}
			r.open.remove(s.key)
			r.ended.put(s.key, s, now)
		}
	}
}
