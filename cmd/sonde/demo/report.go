// Package demo is `sonde demo`: a real model in a process of its own, the whole
// pipeline in this one, a dataset, and a report that says whether the promises
// were kept.
package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Report is report.json. Counts are rows unless their name says otherwise.
type Report struct {
	Requests           int             `json:"requests"`
	Tokens             int             `json:"tokens"` // prompt and generated
	LedgerUnit         string          `json:"ledger_unit"`
	Ledger             Ledger          `json:"ledger"`
	Stored             uint64          `json:"stored"`
	Pending            uint64          `json:"pending"` // acknowledged by the bus, not yet in the dataset
	BitExact           BitExact        `json:"bit_exact"`
	Alerts             []Alert         `json:"alerts"`
	Stopped            []Stopped       `json:"stopped"`
	TensorToVerdictMS  Percentiles     `json:"tensor_to_verdict_ms"`
	RequestsInOneStep  int             `json:"requests_in_one_step"` // the most that one step of the engine held
	GeneratedTokens    int             `json:"generated_tokens"`
	Filtered           uint64          `json:"filtered"` // rows that the policy did not choose: beside the ledger
	Hooks              []string        `json:"hooks"`    // all that the dataset holds
	Seconds            float64         `json:"seconds"`  // from the first request to the last answer
	TokensPerS         float64         `json:"tokens_per_s"`
	DatasetBytes       int64           `json:"dataset_bytes"`
	Model              string          `json:"model"`
	ModelWeightsDigest string          `json:"model_weights_digest"`
	Detector           *DetectorReport `json:"detector"` // null: no detector ran
	Failures           []string        `json:"failures"` // empty: every promise was kept
}

// Ledger is the first law: captured is the sum of all others.
type Ledger struct {
	Captured     uint64 `json:"captured"`
	Acknowledged uint64 `json:"acknowledged"`
	Dropped      uint64 `json:"dropped"`
	Aborted      uint64 `json:"aborted"`
	Lost         uint64 `json:"lost"`
	DeadLettered uint64 `json:"dead_lettered"`
	InFlight     uint64 `json:"in_flight"`
}

// Sum is the right side of the first law.
func (l Ledger) Sum() uint64 {
	return l.Acknowledged + l.Dropped + l.Aborted + l.Lost + l.DeadLettered + l.InFlight
}

// BitExact compares the dataset with what the engine witnessed by itself.
type BitExact struct {
	Checked    int `json:"checked"`
	Mismatched int `json:"mismatched"`
}

// Alert is one verdict of the detector.
type Alert struct {
	ID       string  `json:"id"`
	Request  string  `json:"request"`
	Position int     `json:"position"`
	Score    float64 `json:"score"`
}

// Stopped is one request that the detector ended. Crossing is the position
// whose score crossed the threshold; leaked tokens were generated after it.
type Stopped struct {
	Request      string `json:"request"`
	Crossing     int    `json:"crossing"`
	LeakedTokens int    `json:"leaked_tokens"`
}

// Percentiles of a latency, in milliseconds.
type Percentiles struct {
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	Samples int     `json:"samples"`
}

// DetectorReport says which bundle read along.
type DetectorReport struct {
	Bundle    string  `json:"bundle"`
	Name      string  `json:"name"`
	Digest    string  `json:"digest"`
	Mode      string  `json:"mode"`
	Threshold float64 `json:"threshold"`
}

// judge fills Failures from the figures: the laws, the comparison, the floor of
// what the demo has to show.
func (r *Report) judge() {
	fail := func(format string, args ...any) { r.Failures = append(r.Failures, fmt.Sprintf(format, args...)) }
	if r.Ledger.Captured == 0 {
		fail("nothing was captured")
	}
	if sum := r.Ledger.Sum(); r.Ledger.Captured != sum {
		fail("first law: captured %d is not acknowledged + dropped + aborted + lost + dead_lettered + in_flight = %d",
			r.Ledger.Captured, sum)
	}
	if r.Ledger.Acknowledged != r.Stored+r.Pending {
		fail("second law: acknowledged %d is not stored %d + pending %d", r.Ledger.Acknowledged, r.Stored, r.Pending)
	}
	if r.Ledger.InFlight != 0 {
		fail("in_flight is %d after everything was drained; want 0", r.Ledger.InFlight)
	}
	if r.BitExact.Mismatched != 0 {
		fail("%d of %d rows differ from what the engine witnessed", r.BitExact.Mismatched, r.BitExact.Checked)
	}
	if r.BitExact.Checked == 0 {
		fail("no row was compared with the witness of the engine")
	}
}

// writeFile puts a whole file in place at once: a reader sees the old one, the
// new one, or none, never a part.
func writeFile(path string, data []byte) error {
	part := path + ".part"
	if err := os.WriteFile(part, data, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(part, path)
}

func (r *Report) write(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report.json: %w", err)
	}
	return writeFile(filepath.Join(dir, "report.json"), append(text, '\n'))
}

// law writes a law as an equation with its figures, so that it can be added up.
func (l Ledger) law() string {
	return fmt.Sprintf("captured %s = acknowledged %s + dropped %s + aborted %s + lost %s + dead lettered %s + in "+
		"flight %s",
		group(l.Captured), group(l.Acknowledged), group(l.Dropped), group(l.Aborted), group(l.Lost),
		group(l.DeadLettered), group(l.InFlight))
}

// group writes 1234567 as 1,234,567.
func group[T int | int64 | uint64](n T) string {
	text := fmt.Sprint(n)
	var out strings.Builder
	for i, digit := range text {
		if i > 0 && (len(text)-i)%3 == 0 && text[i-1] != '-' {
			out.WriteByte(',')
		}
		out.WriteRune(digit)
	}
	return out.String()
}
