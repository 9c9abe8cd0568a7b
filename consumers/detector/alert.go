package detector

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sonde/schema"
)

// alert is a level that a request crossed.
type alert struct {
	judge  *judge
	sample *sample
	header schema.Header // of the detection's message: tenant, engine, model
	row    schema.DetectionRow
}

// alertID is the same for the same verdict, whoever reaches it and however often.
func alertID(s *sample, bundle, level string, position int32) string {
	return digest(fmt.Appendf(nil, "%q %016x %d %q %d %s %s %d", s.key.tenant, s.key.epoch, s.key.number, s.request,
		s.sample, bundle, level, position))[:32]
}

// cross makes an alert of a crossed level. While old messages are read again it
// waits: it may have been announced by a run before.
func (r *Detector) cross(ctx context.Context, j *judge, s *sample, c *chain, row *schema.VectorRow, v Verdict,
	level Level,
	verdict int64) {
	m := &j.bundle.Manifest
	a := alert{judge: j, sample: s, header: s.part.headerOf(&c.header), row: schema.DetectionRow{
		ID: alertID(s, j.bundle.Digest, level.Name, row.Position), Detector: m.Name, Version: m.Version,
		Digest: j.bundle.Digest, Level: level.Name, Mode: j.mode, EngineEpoch: s.key.epoch, Number: s.key.number,
		Request: s.request, Sample: s.sample, Position: row.Position, Score: v.Score, Threshold: level.Threshold,
		TokensSeen: v.Seen, Coverage: v.Coverage, CaptureNS: row.CaptureNS, VerdictNS: verdict, Action: ActionNone}}
	if level.Name == LevelStop && j.mode == ModeEnforce && j.breaker.stop(s.slots[j.index]) {
		j.metrics.breaker.Set(1)
		r.raise(j, problemBreaker, fmt.Sprintf("detector %s was to stop %d of the last %d requests, more than the share "+
			"of %v in its bundle: it stops nothing any more; find out why, and start the process anew", m.Name,
			j.breaker.stops, min(j.breaker.begun, breakerWindow), m.Limits.MaxStopRate), time.Time{})
	}
	if up := s.part.catchUp; up != nil && len(up.alerts) < maxDeferred {
		up.alerts = append(up.alerts, a)
		return
	}
	r.announce(ctx, a)
}

// headerOf is the header of a detection about rows of a chain.
func (p *part) headerOf(h *schema.Header) schema.Header {
	return schema.Header{Kind: schema.KindDetections, Tenant: h.Tenant, Engine: h.Engine, Rank: h.Rank, Epoch: p.epoch,
		Model: h.Model, Revision: h.Revision, WeightsDigest: h.WeightsDigest, Quantisation: h.Quantisation,
		EngineVersion: h.EngineVersion, PolicyVersion: h.PolicyVersion}
}

// announce publishes an alert and has the request stopped where the mode says so.
// With an abort, a second row of the same id follows with its outcome.
func (r *Detector) announce(ctx context.Context, a alert) {
	r.decide(&a)
	a.judge.metrics.alerts.WithLabelValues(a.row.Level, a.row.Mode).Inc()
	r.o.Logger.Info("alert", "detector", a.row.Detector, "level", a.row.Level, "mode", a.row.Mode, "request",
		a.row.Request, "sample", a.row.Sample, "position", a.row.Position, "score", a.row.Score, "action", a.row.Action)
	r.enqueue(a.header, a.row)
	if a.row.Action == ActionAbort {
		r.stop(ctx, a)
	}
}

// decide fills in the action, and the outcome where nobody has to be asked.
func (r *Detector) decide(a *alert) {
	if a.row.Level != LevelStop || a.row.Mode != ModeEnforce {
		return
	}
	count := a.judge.metrics.aborts.WithLabelValues
	switch {
	case a.judge.breaker.open:
		count("breaker").Inc()
	case r.now().UnixNano() > r.expiry(&a.row):
		count("expired").Inc() // too old to act on: the request is long gone, or another process stopped it
	case a.sample.ended:
		a.row.Outcome, a.row.FinalLength = schema.AbortFinished, a.sample.length
		count(a.row.Outcome).Inc()
	case !a.sample.opened:
		a.row.Outcome = schema.AbortError
		count(a.row.Outcome).Inc()
		r.o.Logger.Error("cannot stop a request whose opening was never read", "detector", a.row.Detector,
			"request", a.row.Request)
	default:
		a.row.Action = ActionAbort
	}
}

// expiry is when it is too late to stop a request for this token, in ns since 1970.
func (r *Detector) expiry(row *schema.DetectionRow) int64 {
	return row.CaptureNS + int64(r.o.AbortWindow)
}

// stop hands the command to a goroutine of its own: the engine's answer must not
// hold up the scores of others.
func (r *Detector) stop(ctx context.Context, a alert) {
	select {
	case r.aborts <- struct{}{}:
		r.running.Go(func() {
			r.command(ctx, a)
			<-r.aborts
		})
	default:
		a.row.Outcome = schema.AbortError
		a.judge.metrics.aborts.WithLabelValues(a.row.Outcome).Inc()
		r.o.Logger.Error("too many aborts wait for their answer", "detector", a.row.Detector, "waiting", maxAborts)
		r.enqueue(a.header, a.row)
	}
}

// command asks the engine to stop a request until it answers or the command expires,
// and publishes the outcome. At the end of ctx the outcome stays open: the next run
// finds the alert without one and asks again.
func (r *Detector) command(ctx context.Context, a alert) {
	s := a.sample
	order := schema.AbortCommand{Epoch: s.key.epoch, Number: s.key.number, Sample: s.sample, EngineID: s.engineID,
		Position: a.row.Position, ExpiresWallNS: r.expiry(&a.row), AlertID: a.row.ID}
	subject := schema.AbortSubject(s.key.tenant, s.engine, s.rank)
	reply, err := r.ask(ctx, subject, order)
	outcome := reply.Outcome
	switch {
	case ctx.Err() != nil && err != nil:
		return
	case err != nil:
		outcome = schema.AbortError
		r.o.Logger.Error("abort was not answered in time", "detector", a.row.Detector, "request", a.row.Request, "error", err)
	case outcome == schema.AbortError:
		r.o.Logger.Error("abort failed in the engine", "detector", a.row.Detector, "request", a.row.Request,
			"error", clip(reply.Error))
	default:
		a.judge.metrics.abortTime.Observe(float64(r.now().UnixNano()-a.row.CaptureNS) / 1e9)
	}
	a.row.Outcome, a.row.FinalLength = outcome, reply.FinalLength
	a.judge.metrics.aborts.WithLabelValues(outcome).Inc()
	r.enqueue(a.header, a.row)
}

const (
	answerWait = time.Second           // for one try
	retryFirst = 20 * time.Millisecond // doubles up to answerWait
)

// ask repeats a command until there is a readable answer or the command expires.
func (r *Detector) ask(ctx context.Context, subject string, order schema.AbortCommand) (schema.AbortReply, error) {
	data := order.Encode()
	failure := errors.New("no try was made")
	for pause := retryFirst; ; pause = min(2*pause, answerWait) {
		left := time.Duration(order.ExpiresWallNS - r.now().UnixNano())
		if left <= 0 {
			return schema.AbortReply{}, fmt.Errorf("the command expired: %w", failure)
		}
		try, cancel := context.WithTimeout(ctx, min(left, answerWait))
		answer, err := r.o.Bus.Request(try, subject, data)
		cancel()
		if err == nil {
			reply, err := schema.ParseAbortReply(answer)
			if err == nil {
				return reply, nil
			}
			failure = err
		} else {
			failure = err
		}
		select {
		case <-ctx.Done():
			return schema.AbortReply{}, ctx.Err()
		case <-time.After(min(pause, left)):
		}
	}
}
