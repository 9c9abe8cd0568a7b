package detector

import (
	"context"
	"strings"

	"sonde/schema"
)

// catchUp is what a run keeps while it reads messages of before its start.
type catchUp struct {
	last      uint64 // position of the newest message at the start
	alerts    []alert
	published map[publishedKey]published
}

type publishedKey struct {
	sample sampleKey
	digest string
	level  string
}

type published struct {
	header schema.Header
	row    schema.DetectionRow
}

func newCatchUp(last uint64) *catchUp {
	return &catchUp{last: last, published: map[publishedKey]published{}}
}

// known takes detections of runs before. Those of this run come back too and change
// nothing.
func (r *Detector) known(p *part, b *schema.Batch) {
	for i := range b.Len() {
		if p.catchUp == nil || len(p.catchUp.published) >= maxDeferred {
			return
		}
		row := b.Detection(i)
		row.ID, row.Detector, row.Version = strings.Clone(row.ID), strings.Clone(row.Detector), strings.Clone(row.Version)
		row.Digest, row.Level, row.Mode = strings.Clone(row.Digest), strings.Clone(row.Level), strings.Clone(row.Mode)
		row.Request, row.Action = strings.Clone(row.Request), strings.Clone(row.Action)
		row.Outcome = strings.Clone(row.Outcome)
		key := publishedKey{sample: sampleKey{tenant: b.Header.Tenant, epoch: row.EngineEpoch, number: row.Number},
			digest: row.Digest, level: row.Level}
		if old, ok := p.catchUp.published[key]; !ok || old.row.Outcome == "" {
			p.catchUp.published[key] = published{header: b.Header, row: row}
		}
	}
}

// caughtUp announces what no run before announced, and asks again for the outcome of
// aborts whose answer a run before did not live to publish.
func (r *Detector) caughtUp(ctx context.Context, p *part) {
	c := p.catchUp
	p.catchUp = nil
	now := r.now()
	for key, old := range c.published {
		s := r.lookup(key.sample, now)
		if s == nil {
			continue
		}
		for _, j := range r.judges {
			if j.bundle.Digest != key.digest || j.mode != old.row.Mode {
				continue
			}
			if s.tracks[j.index] == nil {
				s.tracks[j.index], s.slots[j.index] = NewTrack(j.bundle), j.breaker.begin()
			}
			s.tracks[j.index].mute(key.level)
			if old.row.Action == ActionAbort && old.row.Outcome == "" && s.opened && now.UnixNano() <= r.expiry(&old.row) {
				r.stop(ctx, alert{judge: j, sample: s, header: p.headerOf(&old.header), row: old.row})
			}
		}
	}
	for _, a := range c.alerts {
		key := publishedKey{sample: a.sample.key, digest: a.row.Digest, level: a.row.Level}
		if old, ok := c.published[key]; !ok || old.row.Mode != a.row.Mode {
			r.announce(ctx, a)
		}
	}
}
