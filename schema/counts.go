package schema

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// CountsSubject is where the stages of the way tell what they know about rows. They
// broadcast it: it is in no stream and no table, so it never counts as rows.
const CountsSubject = "sonde.counts"

// Stages that count.
const (
	StageEngine       = "engine"       // the ring's writer, as its agent reads it
	StageAgent        = "agent"        // ring to bus
	StageSpool        = "spool"        // rows on the agent's disk while the bus is away; of all epochs of the rank
	StageMaterializer = "materializer" // bus to table
	StageDetector     = "detector"     // bus to verdict
)

// MaxCountsBytes bounds one encoded StageCounts.
const MaxCountsBytes = 16 << 10

const (
	countsVersion   = 1
	maxCountClasses = 64
	maxCountsText   = 1 << 10 // bytes of a name
)

// StageCounts is what one stage knows about the rows of the records [FromSeq, ToSeq)
// of an epoch. It is told each second while the stage runs, and again after changes.
// Classes are those of the ledger (captured, acknowledged, dropped/no_space, in_flight,
// ...) and what SCHEMA.md lists beside them; numbers are rows.
type StageCounts struct {
	Version int    `json:"version"`
	Stage   string `json:"stage"`
	Member  string `json:"member"` // of several processes at one stage; random at each start
	Engine  string `json:"engine"`
	Rank    int    `json:"rank"`
	Epoch   string `json:"epoch"` // 16 hex digits; 0 stands for all epochs of the rank
	FromSeq uint64 `json:"from_seq"`
	ToSeq   uint64 `json:"to_seq"`

	Rows   map[string]uint64 `json:"rows"`
	WallNS int64             `json:"wall_ns"`
}

// Encode makes the JSON of a broadcast. It fails when the counts have more than 64
// classes or more than MaxCountsBytes.
func (c StageCounts) Encode() ([]byte, error) {
	c.Version = countsVersion
	if err := c.check(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode counts: %w", err)
	}
	if len(data) > MaxCountsBytes {
		return nil, fmt.Errorf("counts of %s take %d bytes; at most %d", c.Stage, len(data), MaxCountsBytes)
	}
	return data, nil
}

// ParseStageCounts reads a broadcast of anybody. Unknown stages, classes and keys are
// those of a later version and are kept or passed over; another major version, and
// what contradicts itself, is an error.
func ParseStageCounts(data []byte) (StageCounts, error) {
	var c StageCounts
	if len(data) > MaxCountsBytes {
		return c, fmt.Errorf("counts of %d bytes; at most %d", len(data), MaxCountsBytes)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("counts are no JSON object: %w", err)
	}
	if c.Version != countsVersion {
		return c, fmt.Errorf("counts of version %d; this release reads version %d", c.Version, countsVersion)
	}
	return c, c.check()
}

func (c *StageCounts) check() error {
	for _, text := range []string{c.Stage, c.Member, c.Engine} {
		if len(text) > maxCountsText || !utf8.ValidString(text) {
			return fmt.Errorf("counts hold the name %q; want UTF-8 of at most %d bytes", clip(text), maxCountsText)
		}
	}
	if _, err := strconv.ParseUint(c.Epoch, 16, 64); err != nil || len(c.Epoch) != 16 {
		return fmt.Errorf("counts of epoch %q; want 16 hex digits", clip(c.Epoch))
	}
	if c.Stage == "" || c.Rank < 0 || c.FromSeq > c.ToSeq || len(c.Rows) > maxCountClasses {
		return fmt.Errorf("counts of stage %q, rank %d, records %d to %d, %d classes; want a stage, a rank from 0, an "+
			"ascending range and at most %d classes", c.Stage, c.Rank, c.FromSeq, c.ToSeq, len(c.Rows), maxCountClasses)
	}
	return nil
}
