// Package replay runs the pipeline on a recording in place of engines.
package replay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"sonde/cmd/sonde/pipeline"
	"sonde/config"
	"sonde/producer"
	"sonde/recording"
)

// quietLimit is how long a session that has nothing more to give may wait for the
// release of its last records. A recording that was stopped between the records of
// an older epoch's journal ends so: its agent waits for the rest.
const quietLimit = 5 * time.Second

// Run feeds a recording to the pipeline of a configuration and returns the agent's
// ledger once everything is stored and scored. Ranks are replayed at the same
// time, the sessions of one rank one after the other. real gives the records the
// distances of the recording.
func Run(ctx context.Context, r *recording.Recording, conf config.Config, real bool,
	log *slog.Logger) (counts producer.Counts, err error) {
	p, err := pipeline.Start(ctx, pipeline.Options{Config: conf, Log: log, Replay: true})
	if err != nil {
		return counts, err
	}
	defer p.Stop()
	var clock *recording.Clock
	if real {
		clock = recording.StartClock(r)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var ranks sync.WaitGroup
	for _, sessions := range byRank(r.Sessions) {
		ranks.Go(func() {
			for _, s := range sessions {
				if ctx.Err() != nil {
					return
				}
				if err := play(ctx, p, s, clock, log); err != nil {
					stop(err)
					return
				}
			}
		})
	}
	finished := make(chan struct{})
	go func() { ranks.Wait(); close(finished) }()
	select {
	case <-finished:
	case err := <-p.Failed():
		stop(err)
		<-finished
	}
	if err := context.Cause(ctx); err != nil {
		return counts, fmt.Errorf("replay %s: %w", r.Dir, err)
	}
	if err := p.Drain(ctx); err != nil {
		return counts, fmt.Errorf("replay %s: %w", r.Dir, err)
	}
	return p.Ledger().Total, nil
}

// byRank groups sessions by engine and rank, in the order in which they attached.
func byRank(sessions []*recording.Session) [][]*recording.Session {
	type rank struct {
		engine string
		number uint32
	}
	at := map[rank]int{}
	var out [][]*recording.Session
	for _, s := range sessions {
		name := rank{s.Start.Ring.EngineInstance, s.Start.Ring.Rank}
		i, known := at[name]
		if !known {
			i = len(out)
			at[name] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], s)
	}
	return out
}

// play gives one session to the agent and waits until it has nothing left to do
// with it.
func play(ctx context.Context, p *pipeline.Pipeline, s *recording.Session, clock *recording.Clock,
	log *slog.Logger) error {
	reader, err := s.Read(clock)
	if err != nil {
		return err
	}
	if s.End.Reason == recording.ReasonTorn {
		log.Warn("the recorder of the session died: it is replayed up to its last whole step, and its epoch stays open",
			"folder", s.Dir, "lost_records", s.Lost, "torn_bytes", s.Torn)
	}
	attached, detach := context.WithCancel(ctx)
	defer detach()
	left := make(chan struct{})
	go func() { p.Attach(attached, reader); close(left) }()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	done := reader.Done()
	if s.End.Reason == recording.ReasonEnded {
		done = nil
	}
	released, since := reader.ReleaseSeq(), time.Now()
	for {
		select {
		case <-left:
			return outcome(reader)
		case <-done:
			detach()
			done = nil
		case <-tick.C:
			broken := reader.Quarantined() != nil
			now := reader.ReleaseSeq()
			if now != released || !reader.Exhausted() && !broken || p.Ledger().Total.InFlight > 0 {
				released, since = now, time.Now()
			}
			// After an engine's own end, the agent leaves when it has closed the epoch.
			if time.Since(since) > quietLimit && (broken || s.End.Reason != recording.ReasonEnded) {
				log.Warn("the recording of the session ends before what its last records began", "folder", s.Dir,
					"released", released, "until", s.End.Until)
				detach()
			}
		}
	}
}

// outcome is an error for files that were damaged after the check. A ring that was
// corrupt when it was recorded is replayed as such.
func outcome(r *recording.Reader) error {
	if err := r.Quarantined(); errors.Is(err, recording.ErrCorrupt) {
		return err
	}
	return nil
}
