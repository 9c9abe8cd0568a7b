package top

import (
	"cmp"
	"math"
	"slices"
	"strings"
)

// View is what the processes say together. Rates are per second.
type View struct {
	Processes []Process  `json:"processes"`
	Ledger    *Ledger    `json:"ledger"` // null: no process has an agent; and so on
	Agent     *Agent     `json:"agent"`
	Ranks     []Rank     `json:"ranks"`
	Engines   []Engine   `json:"engines"`
	Bus       *Bus       `json:"bus"`
	Lake      *Lake      `json:"lake"`
	Detectors []Detector `json:"detectors"`
	WindowS   float64    `json:"window_seconds"` // that rates and quantiles are of
}

// Process is one that was asked.
type Process struct {
	URL     string   `json:"url"`
	Error   string   `json:"error,omitempty"`
	Ready   *bool    `json:"ready"`             // null: it does not say
	Missing []string `json:"missing,omitempty"` // sentences: what it waits for
}

// Ledger counts rows by what became of them.
type Ledger struct {
	Captured     float64            `json:"captured"`
	Acknowledged float64            `json:"acknowledged"`
	Dropped      map[string]float64 `json:"dropped"` // by reason
	Aborted      float64            `json:"aborted"`
	Lost         float64            `json:"lost"`
	DeadLettered float64            `json:"dead_lettered"`
	InFlight     float64            `json:"in_flight"`
	Filtered     float64            `json:"filtered"` // beside the law
}

// Agent is what the agents do that belongs to no rank.
type Agent struct {
	Ranks         float64 `json:"ranks"`
	MessagesPerS  float64 `json:"messages_per_s"`
	BytesPerS     float64 `json:"bytes_per_s"`
	Refused       float64 `json:"refused_messages"`
	Quarantined   float64 `json:"quarantined_rings"`
	Corrupt       float64 `json:"corrupt_captures"`
	DeadFiles     float64 `json:"dead_letter_files"`
	OldestOpenS   float64 `json:"oldest_batch_seconds"`
	UnservedAbort float64 `json:"unserved_aborts"`
}

// Rank is one rank of an engine, as its agent sees it.
type Rank struct {
	Engine        string  `json:"engine"`
	Rank          string  `json:"rank"`
	RowsPerS      float64 `json:"rows_per_s"` // acknowledged
	DroppedPerS   float64 `json:"dropped_per_s"`
	RingRecords   float64 `json:"ring_records"` // that the agent has not released
	HeldBytes     float64 `json:"held_bytes"`   // of the ring
	InFlightRows  float64 `json:"inflight_rows"`
	InFlightBytes float64 `json:"inflight_bytes"`
	OldestBatchS  float64 `json:"oldest_batch_seconds"`
}

// Engine is an engine that was asked itself.
type Engine struct {
	URL             string  `json:"url"`
	TokensPerS      float64 `json:"tokens_per_s"`
	RowsPerS        float64 `json:"rows_per_s"`
	DroppedRows     float64 `json:"dropped_rows"`
	UsedDescriptors float64 `json:"used_descriptors"`
	Attached        bool    `json:"attached"`
}

// Bus is the stream, and this side of it.
type Bus struct {
	Connected   bool    `json:"connected"` // of all processes
	Bytes       float64 `json:"stream_bytes"`
	MaxBytes    float64 `json:"stream_max_bytes"` // 0: no limit
	Messages    float64 `json:"stream_messages"`
	WindowBytes float64 `json:"window_bytes"` // published and not acknowledged
	FailuresS   float64 `json:"publish_failures_per_s"`
}

// Lake is the materializer.
type Lake struct {
	LagMessages  float64 `json:"lag_messages"`
	OldestS      float64 `json:"oldest_uncommitted_seconds"`
	Version      float64 `json:"version"`
	Commits      float64 `json:"commits"`
	CommitP50S   float64 `json:"commit_p50_seconds"`
	RowsPerS     float64 `json:"rows_per_s"`
	DeadLetters  float64 `json:"dead_letters"`
	Failures     float64 `json:"commit_failures"`
	TrimmedAway  float64 `json:"trimmed_messages"`
	UnchangedFor float64 `json:"version_unchanged_seconds"` // as seen from here: at least so long
}

// Detector is one bundle.
type Detector struct {
	Name     string   `json:"name"`
	RowsPerS float64  `json:"rows_per_s"`
	P50S     *float64 `json:"tensor_to_verdict_p50_seconds"` // null: no token yet
	P99S     *float64 `json:"tensor_to_verdict_p99_seconds"`
	Alerts   float64  `json:"alerts"`
	Aborts   float64  `json:"aborts"`
	Missing  float64  `json:"missing_tokens"`
	Ready    bool     `json:"ready"`
	Breaker  bool     `json:"breaker_open"`
}

// add puts one process into the view.
func (v *View) add(url string, w window) {
	v.WindowS = max(v.WindowS, w.now.at.Sub(w.old.at).Seconds())
	v.addAgent(w)
	v.addBus(w)
	v.addLake(w)
	v.addDetectors(w)
	if s := w.now; s.has("sonde_engine_steps_total") {
		v.Engines = append(v.Engines, Engine{URL: url, TokensPerS: w.rate("sonde_engine_tokens_total"),
			RowsPerS:        w.rate("sonde_engine_ring_captured_rows_total"),
			DroppedRows:     s.sum("sonde_engine_ring_dropped_rows_total"),
			UsedDescriptors: s.sum("sonde_engine_ring_used_descriptors"), Attached: s.sum("sonde_engine_ring_attached") > 0})
	}
}

const rowsMetric = "sonde_producer_rows_total"

func (v *View) addAgent(w window) {
	s := w.now
	if !s.has("sonde_producer_ranks") {
		return
	}
	if v.Ledger == nil {
		v.Ledger, v.Agent = &Ledger{Dropped: map[string]float64{}}, &Agent{}
	}
	l, a := v.Ledger, v.Agent
	l.Captured += s.sum("sonde_producer_captured_rows")
	l.InFlight += s.sum("sonde_producer_inflight_rows")
	for class, n := range s.by("class", rowsMetric) {
		switch class {
		case "acknowledged":
			l.Acknowledged += n
		case "aborted":
			l.Aborted += n
		case "lost":
			l.Lost += n
		case "dead_lettered":
			l.DeadLettered += n
		case "filtered":
			l.Filtered += n
		}
	}
	for reason, n := range s.by("reason", rowsMetric, "class", "dropped") {
		if n > 0 {
			l.Dropped[reason] += n
		}
	}
	a.Ranks += s.sum("sonde_producer_ranks")
	a.MessagesPerS += w.rate("sonde_producer_messages_total")
	a.BytesPerS += w.rate("sonde_producer_message_bytes_total")
	a.Refused += s.sum("sonde_producer_refused_messages_total")
	a.Quarantined += s.sum("sonde_producer_quarantined_total")
	a.Corrupt += s.sum("sonde_producer_corrupt_captures_total")
	a.DeadFiles += s.sum("sonde_producer_dead_letter_files")
	a.UnservedAbort += s.sum("sonde_producer_unserved_aborts_total")
	v.addRanks(w)
}

func (v *View) addRanks(w window) {
	for key, r := range w.split("engine", "rank") {
		if !r.now.has("sonde_producer_ring_records") {
			continue
		}
		one := Rank{Engine: clip(key[0]), Rank: clip(key[1]), RingRecords: r.now.sum("sonde_producer_ring_records"),
			RowsPerS: r.rate(rowsMetric, "class", "acknowledged"), DroppedPerS: r.rate(rowsMetric, "class", "dropped"),
			HeldBytes:     r.now.sum("sonde_producer_held_bytes"),
			InFlightRows:  r.now.sum("sonde_producer_inflight_rows"),
			InFlightBytes: r.now.sum("sonde_producer_inflight_bytes"),
			OldestBatchS:  r.now.sum("sonde_producer_oldest_batch_seconds")}
		v.Ranks = append(v.Ranks, one)
		v.Agent.OldestOpenS = max(v.Agent.OldestOpenS, one.OldestBatchS)
	}
}

func (v *View) addBus(w window) {
	s := w.now
	if !s.has("sonde_bus_connected") {
		return
	}
	if v.Bus == nil {
		v.Bus = &Bus{Connected: true}
	}
	b := v.Bus
	b.Connected = b.Connected && s.sum("sonde_bus_connected") > 0
	b.Bytes = max(b.Bytes, s.sum("sonde_bus_stream_bytes")) // one stream, seen by several
	b.MaxBytes = max(b.MaxBytes, s.sum("sonde_bus_stream_max_bytes"))
	b.Messages = max(b.Messages, s.sum("sonde_bus_stream_messages"))
	b.WindowBytes += s.sum("sonde_bus_window_bytes")
	b.FailuresS += w.rate("sonde_bus_publish_failures_total")
}

func (v *View) addLake(w window) {
	s := w.now
	if !s.has("sonde_materializer_lag_messages") {
		return
	}
	p50, _ := w.quantile(0.5, "sonde_materializer_commit_seconds")
	v.Lake = &Lake{LagMessages: s.sum("sonde_materializer_lag_messages"),
		OldestS: s.sum("sonde_materializer_oldest_uncommitted_seconds"), Version: s.sum("sonde_lake_version"),
		Commits: s.sum("sonde_materializer_commit_seconds"), CommitP50S: p50,
		RowsPerS:    w.rate("sonde_materializer_rows_stored_total"),
		DeadLetters: s.sum("sonde_materializer_dead_letters_total"),
		Failures:    s.sum("sonde_materializer_commit_failures_total"),
		TrimmedAway: s.sum("sonde_materializer_trimmed_messages_total")}
}

func (v *View) addDetectors(w window) {
	const latency = "sonde_detector_tensor_to_verdict_seconds"
	for key, d := range w.split("detector", "") {
		if !d.now.has("sonde_detector_ready") {
			continue
		}
		one := Detector{Name: clip(key[0]), Ready: d.now.sum("sonde_detector_ready") > 0,
			RowsPerS: d.rate("sonde_detector_rows_total", "result", "scored"),
			Alerts:   d.now.sum("sonde_detector_alerts_total"), Aborts: d.now.sum("sonde_detector_aborts_total"),
			Missing: d.now.sum("sonde_detector_missing_tokens_total"),
			Breaker: d.now.sum("sonde_detector_breaker_open") > 0}
		if p, ok := d.quantile(0.5, latency); ok && !math.IsInf(p, 0) {
			one.P50S = &p
		}
		if p, ok := d.quantile(0.99, latency); ok && !math.IsInf(p, 0) {
			one.P99S = &p
		}
		v.Detectors = append(v.Detectors, one)
	}
}

// sort brings what needs a look to the top: ranks that are behind first.
func (v *View) sort() {
	slices.SortStableFunc(v.Ranks, func(a, b Rank) int {
		return cmp.Or(cmp.Compare(b.RingRecords, a.RingRecords), strings.Compare(a.Engine, b.Engine),
			strings.Compare(a.Rank, b.Rank))
	})
	slices.SortStableFunc(v.Detectors, func(a, b Detector) int { return strings.Compare(a.Name, b.Name) })
}
