// Package detector judges requests while they run: it reads rows of one hook from
// the bus, scores each token with a bundle, raises an alert when the aggregated
// score of a request crosses a level, and may have the engine stop the request.
//
// A bundle (Bundle) is a folder that binds weights, thresholds and test vectors to
// the model they were made for. A Track judges one sample of a request; it is the
// same code here and in training. Detector feeds tracks from the bus.
package detector

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/bus"
	"sonde/consumers/group"
	"sonde/schema"
	"sonde/tally"
)

// Modes of a detector.
const (
	ModeShadow  = "shadow"  // score and publish, so that somebody can look
	ModeAlert   = "alert"   // the same, and a verdict means what it says
	ModeEnforce = "enforce" // at level stop, have the engine end the request
)

// Actions of a detection.
const (
	ActionNone  = "none"
	ActionAbort = "abort"
)

// Bounds of a runtime.
const (
	maxSamples      = 1 << 16 // samples of requests that are known at a time; beyond, the idlest is forgotten
	maxChains       = 1 << 12 // chains whose watermark is known
	maxDeferred     = 1 << 14 // alerts that wait for the end of the catch-up
	maxAborts       = 256     // commands that wait for an answer
	maxUnpublished  = 1 << 10 // detections that wait for the publisher
	idleTTL         = 10 * time.Minute
	endedTTL        = 30 * time.Second // late rows of an ended request find it this long
	problemTTL      = time.Minute      // a refused binding stays visible so long after the last refused row
	sweepInterval   = time.Second
	quietCatchUp    = 500 * time.Millisecond // nothing to read for so long: the catch-up is over
	shutdownGrace   = 3 * time.Second        // for detections that are not published yet
	defaultLookback = idleTTL
	defaultWindow   = 10 * time.Second
)

// Use is a bundle at work.
type Use struct {
	Bundle *Bundle
	Mode   string // shadow | alert | enforce
}

// Score is one judged token.
type Score struct {
	Detector  string // name of the bundle
	Epoch     uint64 // of the engine
	Number    uint64
	Request   string
	Sample    int32
	Position  int32
	Raw       float32 // of this token alone
	Score     float32 // aggregated up to this token: what the thresholds judge
	CaptureNS int64   // wall clock when the row's capture was complete, ns since 1970
	VerdictNS int64   // wall clock of the verdict
}

// Options of a Detector. Zero durations mean the default in brackets.
type Options struct {
	Bus       bus.Bus
	Detectors []Use // at least one, of different names

	// OnScore gets every judged token and OnDetection every row of the detections
	// that is handed to the bus, both in process. They are called from the runtime's
	// goroutines and must not block.
	OnScore     func(Score)
	OnDetection func(schema.DetectionRow)

	Heartbeat time.Duration // between those by which processes with the same bundles share the stream [1 s]
	Settle    time.Duration // how long a start waits for the answers of others [200 ms]; below 0: not at all

	AbortWindow time.Duration         // a request is stopped only so long after the capture of the deciding token [10 s]
	Lookback    time.Duration         // how much of the stream a start reads again, to know the open requests [10 min]
	Logger      *slog.Logger          // nil: nothing is logged
	Registerer  prometheus.Registerer // nil: metrics are not exported
}

// Detector runs bundles on a bus. Processes with the same bundles share the partitions
// of the stream. Its state is in memory: whoever takes a partition reads the last
// minutes of it again and repeats no alert that is published there.
type Detector struct {
	o       Options
	judges  []*judge
	member  *group.Member
	parts   map[int]*part // by partition: those that this process judges
	chains  *lru[schema.ChainKey, *chain]
	open    *lru[sampleKey, *sample]
	ended   *lru[sampleKey, *sample]
	metrics *metrics
	now     func() time.Time

	deliveries chan bus.Delivery // from all partitions
	taken      chan *part
	given      chan giving

	queue   chan outgoing
	aborts  chan struct{} // one token per running command
	running sync.WaitGroup

	progress progress
	book     *tally.Book // rows that were read for some detector, for the other stages

	mu       sync.Mutex // leaf: guards problems
	problems map[string]problem
}

// judge is one detector of a runtime.
type judge struct {
	index   int
	bundle  *Bundle
	mode    string
	breaker breaker
	metrics judgeMetrics
	unseen  int       // requests in a row that ended without one row for this detector
	lastRow time.Time // when the latest message with rows to score came
}

// New checks the options.
func New(o Options) (*Detector, error) {
	if len(o.Detectors) == 0 {
		return nil, fmt.Errorf("start the detector: there is no bundle; name one under detectors in the configuration")
	}
	fillDuration(&o.AbortWindow, defaultWindow)
	fillDuration(&o.Lookback, defaultLookback)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Detector{o: o, parts: map[int]*part{}, chains: newLRU[schema.ChainKey, *chain](),
		open: newLRU[sampleKey, *sample](), ended: newLRU[sampleKey, *sample](), metrics: newMetrics(o.Registerer),
		now: time.Now, deliveries: make(chan bus.Delivery, 1), taken: make(chan *part), given: make(chan giving),
		queue: make(chan outgoing, maxUnpublished), aborts: make(chan struct{}, maxAborts),
		problems: map[string]problem{}, book: tally.NewBook(schema.StageDetector)}
	names := map[string]string{}
	for i, u := range o.Detectors {
		name := u.Bundle.Manifest.Name
		if other, twice := names[name]; twice {
			return nil, fmt.Errorf("start the detector: bundles %s and %s are both named %s; give one another name", other,
				u.Bundle.Dir, name)
		}
		names[name] = u.Bundle.Dir
		if u.Mode != ModeShadow && u.Mode != ModeAlert && u.Mode != ModeEnforce {
			return nil, fmt.Errorf("start the detector: mode %q of bundle %s; want shadow, alert or enforce", clip(u.Mode),
				u.Bundle.Dir)
		}
		r.judges = append(r.judges, &judge{index: i, bundle: u.Bundle, mode: u.Mode,
			breaker: breaker{rate: u.Bundle.Manifest.Limits.MaxStopRate}, metrics: r.metrics.of(name)})
	}
	var err error
	r.member, err = group.New(group.Options{Bus: o.Bus, Kind: "detector", Name: groupName(o.Detectors),
		Period: o.Heartbeat, Settle: o.Settle, Logger: o.Logger, Registerer: o.Registerer})
	if err != nil {
		return nil, fmt.Errorf("start the detector: %w", err)
	}
	r.progress.positions = make([]atomic.Uint64, o.Bus.Partitions())
	return r, nil
}

// groupName is the same for all processes that judge alike.
func groupName(uses []Use) string {
	var all []byte
	for _, u := range uses {
		all = fmt.Appendf(all, "%q %q\n", u.Bundle.Digest, u.Mode)
	}
	return digest(all)
}

func fillDuration(d *time.Duration, otherwise time.Duration) {
	if *d == 0 {
		*d = otherwise
	}
}

// problem is a reason why a detector does not judge what it should.
type problem struct {
	sentence string
	expires  time.Time // zero: stays until it is solved
}

// Problems lists, one sentence each, why a detector does not judge what it should:
// rows that it must refuse, rows that never come, an open circuit breaker. Empty
// means ready. It may be called from any goroutine.
func (r *Detector) Problems() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	if what := r.member.Trouble(); what != "" {
		out = append(out, what)
	}
	for _, j := range r.judges {
		for _, kind := range []string{problemBinding, problemUnseen, problemBreaker} {
			if p, ok := r.problems[kind+j.bundle.Manifest.Name]; ok {
				out = append(out, p.sentence)
			}
		}
	}
	return out
}

// Kinds of problems: each detector has at most one of each.
const (
	problemBinding = "binding "
	problemUnseen  = "unseen "
	problemBreaker = "breaker "
)

// raise makes a problem visible and logs it when it is new.
func (r *Detector) raise(j *judge, kind, sentence string, expires time.Time) {
	name := j.bundle.Manifest.Name
	r.mu.Lock()
	old := r.problems[kind+name]
	r.problems[kind+name] = problem{sentence: sentence, expires: expires}
	r.mu.Unlock()
	j.metrics.ready.Set(0)
	if old.sentence != sentence {
		r.o.Logger.Error("detector does not judge what it should", "detector", name, "problem", sentence)
	}
}

// solve takes a problem away.
func (r *Detector) solve(j *judge, kind string) {
	name := j.bundle.Manifest.Name
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.problems, kind+name)
	left := 0
	for _, k := range []string{problemBinding, problemUnseen, problemBreaker} {
		if _, ok := r.problems[k+name]; ok {
			left++
		}
	}
	if left == 0 {
		j.metrics.ready.Set(1)
	}
}
