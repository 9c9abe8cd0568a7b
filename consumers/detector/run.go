package detector

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"sonde/bus"
	"sonde/schema"
	"sonde/tally"
)

// Filters are the subjects of what a run reads: rows of the bound hooks and layers,
// requests, and detections of runs before.
func (r *Detector) Filters() []string {
	any := schema.SubjectPrefix + ".*.*.*."
	out := []string{any + string(schema.KindRequests) + ".>", any + string(schema.KindDetections) + ".>"}
	seen := map[string]bool{}
	for _, j := range r.judges {
		b := j.bundle.Manifest.Binding
		layer := "_"
		if b.Layer >= 0 {
			layer = strconv.Itoa(b.Layer)
		}
		f := any + string(schema.KindVectors) + "." + schema.EscapeToken(b.Hook) + "." + layer
		if !seen[f] {
			out = append(out, f)
		}
		seen[f] = true
	}
	return out
}

// Run judges until ctx ends, which is no error, or until the bus is closed. It waits
// for the broker as long as it takes.
func (r *Detector) Run(ctx context.Context) error {
	publishing, stopPublishing := context.WithCancel(context.WithoutCancel(ctx))
	published := make(chan struct{})
	go func() {
		r.publish(publishing)
		close(published)
	}()
	commands, stop := context.WithCancel(ctx)
	err := r.loop(ctx, commands)
	stop()
	r.running.Wait() // commands: they end with their context
	close(r.queue)
	grace := time.AfterFunc(shutdownGrace, stopPublishing)
	<-published
	grace.Stop()
	stopPublishing()
	return endOf(ctx, err)
}

// endOf is nil when ctx ended: that is how a run is asked to stop.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, bus.ErrClosed) {
		return nil
	}
	return err
}

// quietPoll is how often the loop looks whether a partition that is read again brings
// nothing more.
const quietPoll = quietCatchUp / 5

// loop judges in one goroutine; others fetch the next message of each partition that
// this process has. It goes on until all of them have ended.
func (r *Detector) loop(ctx, commands context.Context) error {
	live, deaf, err := r.listen()
	if err != nil {
		return fmt.Errorf("hear live messages: %w", err)
	}
	defer deaf()
	telling, stop := context.WithCancel(ctx)
	var teller sync.WaitGroup
	teller.Go(func() { tally.Tell(telling, r.o.Bus, r.o.Logger, r.book.Counts) })
	defer teller.Wait()
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- r.member.Run(ctx, r.hold) }()
	quiet := time.NewTicker(quietPoll)
	defer quiet.Stop()
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case d := <-live.heard:
			r.hear(commands, live, d)
		case d := <-r.deliveries:
			r.deliver(commands, live, d)
		case p := <-r.taken:
			r.parts[p.number] = p
		case g := <-r.given:
			r.give(g, live)
		case <-quiet.C:
			for _, p := range r.parts {
				if p.catchUp != nil && r.now().Sub(p.read) >= quietCatchUp {
					r.caughtUp(commands, p)
					r.resume(commands, live)
					r.progressed(p)
				}
			}
		case <-tick.C:
			if n := live.missed.Swap(0); n > 0 {
				r.metrics.stream.WithLabelValues("unheard").Add(float64(n))
			}
			r.sweep(r.now())
		case err := <-ended:
			return err
		}
	}
}

// deliver takes a message of a partition.
func (r *Detector) deliver(ctx context.Context, live *live, d bus.Delivery) {
	p := r.parts[d.Partition]
	if p == nil {
		return // given up meanwhile
	}
	r.handle(ctx, d)
	p.read = r.now()
	if p.catchUp != nil && d.Seq >= p.catchUp.last {
		r.caughtUp(ctx, p)
	}
	r.resume(ctx, live)
	p.at = d.Seq
	r.progressed(p)
}

// progressed tells others how far a partition is judged. While it is read again,
// alerts wait: nothing of it is settled before it has caught up.
func (r *Detector) progressed(p *part) {
	if p.catchUp == nil && p.at > 0 {
		r.progress.positions[p.number].Store(p.at)
	}
}

// handle takes one message. Messages come from anywhere: what cannot be read is
// counted, and so is one whose header contradicts the subject that the broker
// checked the sender's rights for.
func (r *Detector) handle(ctx context.Context, d bus.Delivery) {
	b, err := schema.Decode(d.Data)
	if err != nil {
		r.metrics.stream.WithLabelValues("undecodable").Inc()
		r.o.Logger.Warn("detector cannot read a message", "subject", clip(d.Subject), "error", err)
		return
	}
	r.take(ctx, r.parts[d.Partition], d.Subject, b)
}

// take is handle for a message that was decoded.
func (r *Detector) take(ctx context.Context, p *part, subject string, b *schema.Batch) {
	if schema.Subject(b.Header) != subject {
		r.metrics.stream.WithLabelValues("forged").Inc()
		r.o.Logger.Warn("header and subject of a message differ", "subject", clip(subject))
		return
	}
	now := r.now()
	switch b.Header.Kind {
	case schema.KindRequests:
		for i := range b.Len() {
			r.event(p, &b.Header, b.RequestAt(i), now)
		}
	case schema.KindDetections:
		r.known(p, b)
	case schema.KindVectors:
		r.vectors(ctx, p, b, now)
	}
}

// vectors judges the rows of one message that were not read before.
func (r *Detector) vectors(ctx context.Context, p *part, b *schema.Batch, now time.Time) {
	h := &b.Header
	c := r.chainOf(p, h, now)
	var judges []*judge
	for _, j := range r.judges {
		if !j.bundle.Manifest.Binding.reads(h) {
			continue
		}
		if why := c.refused[j.index]; why != "" {
			r.refuse(j, h, why, b.Len(), now)
			continue
		}
		if j.lastRow = now; j.unseen > 0 {
			j.unseen = 0
			r.solve(j, problemUnseen)
		}
		judges = append(judges, j)
	}
	fresh := uint64(0)
	for i := range b.Len() {
		row := b.Vector(i)
		if !c.watermark.Less(schema.Cursor{Seq: row.Seq, Row: row.Row + 1}) {
			for _, j := range judges {
				j.metrics.rows.WithLabelValues(string(Repeated)).Inc()
			}
			continue
		}
		fresh++
		s := r.find(p, h, row.Number, row.Request, row.Sample, now)
		for _, j := range judges {
			r.judgeRow(ctx, j, s, c, &row)
		}
	}
	r.book.Add(h, "read", fresh)
	if c.watermark.Less(h.Last()) {
		c.watermark = h.Last()
	}
}

// judgeRow scores one row with one detector.
func (r *Detector) judgeRow(ctx context.Context, j *judge, s *sample, c *chain, row *schema.VectorRow) {
	if adapter := j.bundle.Manifest.Binding.Adapter; adapter != Any {
		if !s.opened {
			j.metrics.rows.WithLabelValues("unopened").Inc()
			return
		}
		if !adapterFits(adapter, s.adapter) {
			j.metrics.rows.WithLabelValues("other_adapter").Inc()
			return
		}
	}
	track := s.tracks[j.index]
	if track == nil {
		track = NewTrack(j.bundle)
		s.tracks[j.index], s.slots[j.index] = track, j.breaker.begin()
	}
	v := track.Judge(Token{Position: row.Position, Phase: row.Phase, PromptTokens: s.prompt}, row.Vec)
	j.metrics.missing.Add(float64(v.Skipped))
	if v.Result != Scored {
		j.metrics.rows.WithLabelValues(string(v.Result)).Inc()
		return
	}
	j.metrics.scored.Inc()
	verdict := r.now().UnixNano()
	if s.part.catchUp == nil {
		j.metrics.latency.Observe(float64(verdict-row.CaptureNS) / 1e9)
	}
	if r.o.OnScore != nil {
		r.o.OnScore(Score{Detector: j.bundle.Manifest.Name, Epoch: s.key.epoch, Number: s.key.number, Request: s.request,
			Sample: s.sample, Position: row.Position, Raw: v.Raw, Score: v.Score, CaptureNS: row.CaptureNS, VerdictNS: verdict})
	}
	for _, level := range v.Crossed {
		r.cross(ctx, j, s, c, row, v, level, verdict)
	}
}
