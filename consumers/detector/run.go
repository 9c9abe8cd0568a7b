package detector

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"sonde/bus"
	"sonde/schema"
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
	start, err := r.start(ctx)
	if err != nil {
		return endOf(ctx, fmt.Errorf("start the detector: %w", err))
	}
	publishing, stopPublishing := context.WithCancel(context.WithoutCancel(ctx))
	published := make(chan struct{})
	go func() {
		r.publish(publishing)
		close(published)
	}()
	ctx, stop := context.WithCancel(ctx)
	err = r.loop(ctx, start)
	stop()
	r.running.Wait() // commands: they end with ctx
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

// loop reads and judges in one goroutine; another one fetches the next message
// meanwhile.
func (r *Detector) loop(ctx context.Context, start startPoint) error {
	live, deaf, err := r.listen()
	if err != nil {
		return fmt.Errorf("hear live messages: %w", err)
	}
	defer deaf()
	deliveries := make(chan bus.Delivery, 1)
	ended := make(chan error, 1)
	go func() { ended <- r.read(ctx, start, deliveries) }()
	if start.last >= start.from {
		r.catchUp = newCatchUp(start.last)
	}
	quiet := time.NewTimer(quietCatchUp)
	defer quiet.Stop()
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case d := <-live.heard:
			r.hear(ctx, live, d)
		case d := <-deliveries:
			r.handle(ctx, d)
			quiet.Reset(quietCatchUp)
			if r.catchUp != nil && d.Seq >= r.catchUp.last {
				r.caughtUp(ctx)
			}
			r.resume(ctx, live)
			r.progress.position.Store(d.Seq)
		case <-quiet.C:
			r.caughtUp(ctx)
			r.resume(ctx, live)
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

// read hands over messages until ctx ends or the bus is closed. What was trimmed
// away, or a stream made anew, costs coverage and is counted, and reading goes on.
func (r *Detector) read(ctx context.Context, start startPoint, deliveries chan<- bus.Delivery) error {
	o := bus.SubscribeOptions{Filters: r.Filters(), From: start.from, Incarnation: start.incarnation}
	for {
		sub, err := r.o.Bus.Subscribe(ctx, o)
		if err != nil {
			return fmt.Errorf("read the bus: %w", err)
		}
		err = forward(ctx, sub, deliveries)
		sub.Close()
		var trimmed *bus.TrimmedError
		switch {
		case errors.As(err, &trimmed):
			r.metrics.stream.WithLabelValues("trimmed").Inc()
			r.o.Logger.Warn("detector is too slow: messages were trimmed away unread", "from", trimmed.Want,
				"to", trimmed.First)
			o.From = trimmed.First
		case errors.Is(err, bus.ErrIncarnation):
			r.metrics.stream.WithLabelValues("recreated").Inc()
			r.o.Logger.Warn("the stream was made anew: the detector reads it from its start")
			o.From, o.Incarnation = 0, ""
		default:
			return fmt.Errorf("read the bus: %w", err)
		}
	}
}

func forward(ctx context.Context, sub bus.Subscription, deliveries chan<- bus.Delivery) error {
	for {
		d, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		select {
		case deliveries <- d:
		case <-ctx.Done():
			return ctx.Err()
		}
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
	r.take(ctx, d.Subject, b)
}

// take is handle for a message that was decoded.
func (r *Detector) take(ctx context.Context, subject string, b *schema.Batch) {
	if schema.Subject(b.Header) != subject {
		r.metrics.stream.WithLabelValues("forged").Inc()
		r.o.Logger.Warn("header and subject of a message differ", "subject", clip(subject))
		return
	}
	now := r.now()
	switch b.Header.Kind {
	case schema.KindRequests:
		for i := range b.Len() {
			r.event(&b.Header, b.RequestAt(i), now)
		}
	case schema.KindDetections:
		r.known(b)
	case schema.KindVectors:
		r.vectors(ctx, b, now)
	}
}

// vectors judges the rows of one message that were not read before.
func (r *Detector) vectors(ctx context.Context, b *schema.Batch, now time.Time) {
	h := &b.Header
	c := r.chainOf(h, now)
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
	for i := range b.Len() {
		row := b.Vector(i)
		if !c.watermark.Less(schema.Cursor{Seq: row.Seq, Row: row.Row + 1}) {
			for _, j := range judges {
				j.metrics.rows.WithLabelValues(string(Repeated)).Inc()
			}
			continue
		}
		s := r.find(h, row.Number, row.Request, row.Sample, now)
		for _, j := range judges {
			r.judgeRow(ctx, j, s, c, &row)
		}
	}
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
	if r.catchUp == nil {
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

// startPoint is where a run starts to read.
type startPoint struct {
	from, last  uint64 // first position to read; last that existed then
	incarnation string
}

// start finds the first message of the last minutes, so that the requests that are
// open now are known from their opening on. The stream is searched by halving.
func (r *Detector) start(ctx context.Context) (startPoint, error) {
	info, err := r.o.Bus.Info(ctx, 0)
	if err != nil {
		return startPoint{}, err
	}
	since := time.Now().Add(-r.o.Lookback)
	low, high := info.First, info.Last+1
	for probe := low; low < high; probe = low + (high-low)/2 {
		stored, at, err := r.peek(ctx, probe)
		var trimmed *bus.TrimmedError
		switch {
		case errors.As(err, &trimmed):
			low = max(trimmed.First, probe+1)
		case errors.Is(err, bus.ErrIncarnation):
			return r.start(ctx)
		case err != nil:
			return startPoint{}, err
		case stored.Before(since):
			low = at + 1
		default:
			high = probe
		}
	}
	return startPoint{from: low, last: info.Last, incarnation: info.Incarnation}, nil
}

// peek says when the first message at or after a position was stored.
func (r *Detector) peek(ctx context.Context, position uint64) (stored time.Time, at uint64, err error) {
	sub, err := r.o.Bus.Subscribe(ctx, bus.SubscribeOptions{From: position})
	if err != nil {
		return stored, 0, err
	}
	defer sub.Close()
	d, err := sub.Next(ctx)
	return d.Stored, d.Seq, err
}
