package recording

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"time"
	"unicode/utf8"

	"sonde/ring2"
)

// The files, as FORMAT.md describes them.
const (
	magic              = "SONDEREC"
	version            = 1
	segmentHeaderBytes = 120
	frameHeaderBytes   = 20
	frameTrailerBytes  = 4
	recordHeaderBytes  = 40
	engineBytes        = 64
)

// Types of frames.
const (
	frameSession  = 1 // JSON of Start: the first frame of a session
	frameSnapshot = 2 // a record of the snapshot; all follow the first frame
	frameRecord   = 3 // a record of the ring
	frameLost     = 4 // u64 sequence numbers that the engine claimed and never committed
	frameEnd      = 5 // JSON of End: the last frame
)

// Bounds of what a reader believes. They are those of a ring.
const (
	maxDescCount     = 1 << 20
	maxDataBytes     = 1 << 36
	maxRanks         = 1 << 16
	maxSnapshotItems = 1 << 18
	maxSnapshotBytes = 64 << 20
	maxJSONBytes     = 1 << 16
	maxLostFrame     = 1 << 16 // sequence numbers of one frame
)

var (
	// ErrVersion: a newer version of Sonde wrote the recording.
	ErrVersion = errors.New("recording is of a newer format")
	// ErrCorrupt: the bytes are not those that were written.
	ErrCorrupt = errors.New("recording is corrupt")
)

var (
	order      = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Ring is ring2.Config as a recording keeps it.
type Ring struct {
	ABIMajor          uint16 `json:"abi_major"`
	ABIMinor          uint16 `json:"abi_minor"`
	DescCount         uint64 `json:"desc_count"`
	DataBytes         uint64 `json:"data_bytes"`
	Epoch             uint64 `json:"epoch"`
	Features          uint64 `json:"features"`
	ReserveDescs      uint64 `json:"reserve_descs"`
	ReserveBytes      uint64 `json:"reserve_bytes"`
	ProducerPID       uint32 `json:"producer_pid"`
	Rank              uint32 `json:"rank"`
	RankCount         uint32 `json:"rank_count"`
	Mode              uint32 `json:"mode"`
	StepStallBudgetNS int64  `json:"step_stall_budget_ns"`
	WallMinusMonoNS   uint64 `json:"wall_minus_mono_ns"`
	EngineInstance    string `json:"engine_instance"`
}

func ringOf(c ring2.Config) Ring {
	return Ring{ABIMajor: c.ABIMajor, ABIMinor: c.ABIMinor, DescCount: c.DescCount, DataBytes: c.DataBytes, Epoch: c.Epoch,
		Features: c.Features, ReserveDescs: c.ReserveDescs, ReserveBytes: c.ReserveBytes, ProducerPID: c.ProducerPID,
		Rank: c.Rank, RankCount: c.RankCount, Mode: uint32(c.Mode), StepStallBudgetNS: int64(c.StepStallBudget),
		WallMinusMonoNS: c.WallMinusMonoNS, EngineInstance: c.EngineInstance}
}

func (r *Ring) config() ring2.Config {
	return ring2.Config{ABIMajor: r.ABIMajor, ABIMinor: r.ABIMinor, DescCount: r.DescCount, DataBytes: r.DataBytes,
		Epoch: r.Epoch, Features: r.Features, ReserveDescs: r.ReserveDescs, ReserveBytes: r.ReserveBytes,
		ProducerPID: r.ProducerPID, Rank: r.Rank, RankCount: r.RankCount, Mode: ring2.Mode(r.Mode),
		StepStallBudget: time.Duration(r.StepStallBudgetNS), WallMinusMonoNS: r.WallMinusMonoNS,
		EngineInstance: r.EngineInstance}
}

// check says what no ring can be. An agent takes a session's word for these.
func (r *Ring) check() error {
	switch {
	case bits.OnesCount64(r.DescCount) != 1 || r.DescCount > maxDescCount:
		return fmt.Errorf("ring of %d descriptors", r.DescCount)
	case bits.OnesCount64(r.DataBytes) != 1 || r.DataBytes > maxDataBytes:
		return fmt.Errorf("ring of %d bytes", r.DataBytes)
	case r.Epoch == 0 || r.Rank >= r.RankCount || r.RankCount > maxRanks || r.Mode > uint32(ring2.Complete):
		return fmt.Errorf("ring of epoch %x, rank %d of %d, mode %d", r.Epoch, r.Rank, r.RankCount, r.Mode)
	case len(r.EngineInstance) >= engineBytes || !utf8.ValidString(r.EngineInstance):
		return fmt.Errorf("ring of engine %q", r.EngineInstance)
	}
	return nil
}

// Counters are the writer's counters at one moment.
type Counters struct {
	CapturedRows uint64                    `json:"captured_rows"`
	DroppedRows  [ring2.ReasonCount]uint64 `json:"dropped_rows"` // by code of the reason
	AbortedRows  uint64                    `json:"aborted_rows"`
	Steps        uint64                    `json:"steps"`
	BeatNS       uint64                    `json:"beat_ns"`
	Closing      bool                      `json:"closing"`
}

func (c *Counters) producer() ring2.ProducerCounters {
	return ring2.ProducerCounters{CapturedRows: c.CapturedRows, DroppedRows: c.DroppedRows, AbortedRows: c.AbortedRows,
		Steps: c.Steps, BeatNS: c.BeatNS, Closing: c.Closing}
}

func countersOf(c ring2.ProducerCounters) Counters {
	return Counters{CapturedRows: c.CapturedRows, DroppedRows: c.DroppedRows, AbortedRows: c.AbortedRows, Steps: c.Steps,
		BeatNS: c.BeatNS, Closing: c.Closing}
}

// Start is what was known of a session when its rank attached.
type Start struct {
	Recorder   string   `json:"recorder"` // program and version that recorded
	AttachedNS int64    `json:"attached_ns"`
	Ring       Ring     `json:"ring"`
	Release    uint64   `json:"release_seq"` // the first record that can come
	Claim      uint64   `json:"claim_seq"`
	Counters   Counters `json:"counters"`
	Snapshot   int      `json:"snapshot_records"`
}

// Reason says why the recording of a session ended.
type Reason string

// The reasons.
const (
	ReasonEnded   Reason = "engine_ended" // the ring was read to its end
	ReasonStopped Reason = "stopped"      // the recorder was stopped; the engine went on
	ReasonFull    Reason = "full"         // the recording reached its bound
	ReasonFailed  Reason = "failed"       // the recording could not be written
	ReasonCorrupt Reason = "ring_corrupt" // the ring could not be read on
	ReasonTorn    Reason = "torn"         // the recorder died; never written, but found
)

// End closes the recording of a session.
type End struct {
	Reason   Reason   `json:"reason"`
	Detail   string   `json:"detail,omitempty"` // of failed and ring_corrupt
	Until    uint64   `json:"until_seq"`        // records from here on are not part of the recording: a step boundary
	Claim    uint64   `json:"claim_seq"`
	Counters Counters `json:"counters"`
}

// segmentHeader opens each file. identity tells the sessions of an epoch apart.
type segmentHeader struct {
	epoch, identity uint64
	index, rank     uint32
	ordinal         uint64 // of its first frame
	engine          string
}

func appendSegmentHeader(b []byte, h segmentHeader) []byte {
	start := len(b)
	b = append(b, magic...)
	b = order.AppendUint32(b, version)
	b = order.AppendUint32(b, segmentHeaderBytes)
	b = order.AppendUint64(b, h.epoch)
	b = order.AppendUint64(b, h.identity)
	b = order.AppendUint32(b, h.index)
	b = order.AppendUint32(b, h.rank)
	b = order.AppendUint64(b, h.ordinal)
	var engine [engineBytes]byte
	copy(engine[:engineBytes-1], h.engine)
	b = append(b, engine[:]...)
	b = append(b, 0, 0, 0, 0)
	return order.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

func parseSegmentHeader(b []byte) (segmentHeader, error) {
	switch v := order.Uint32(b[8:]); {
	case string(b[:8]) != magic:
		return segmentHeader{}, fmt.Errorf("%w: it does not begin with %s", ErrCorrupt, magic)
	case v > version && v < 1<<16: // a larger one is damage
		return segmentHeader{}, fmt.Errorf("%w: version %d, and this program reads up to %d; use a newer one", ErrVersion, v,
			version)
	case order.Uint32(b[segmentHeaderBytes-4:]) != crc32.Checksum(b[:segmentHeaderBytes-4], castagnoli):
		return segmentHeader{}, fmt.Errorf("%w: the checksum of its header does not fit", ErrCorrupt)
	case v != version || order.Uint32(b[12:]) != segmentHeaderBytes:
		return segmentHeader{}, fmt.Errorf("%w: version %d with a header of %d bytes", ErrCorrupt, v, order.Uint32(b[12:]))
	}
	engine, _, _ := bytes.Cut(b[48:48+engineBytes], []byte{0})
	return segmentHeader{epoch: order.Uint64(b[16:]), identity: order.Uint64(b[24:]), index: order.Uint32(b[32:]),
		rank: order.Uint32(b[36:]), ordinal: order.Uint64(b[40:]), engine: string(engine)}, nil
}

// frameHeader stands before each body. Its own checksum tells a damaged length
// from a file that was cut short.
type frameHeader struct {
	length  uint32
	typ     uint8
	ordinal uint64
}

func appendFrameHeader(b []byte, h frameHeader) []byte {
	start := len(b)
	b = order.AppendUint32(b, h.length)
	b = append(b, h.typ, 0, 0, 0)
	b = order.AppendUint64(b, h.ordinal)
	return order.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// parseFrameHeader reports false when the checksum does not fit.
func parseFrameHeader(b []byte) (frameHeader, bool) {
	ok := order.Uint32(b[16:]) == crc32.Checksum(b[:16], castagnoli)
	return frameHeader{length: order.Uint32(b), typ: b[4], ordinal: order.Uint64(b[8:])}, ok
}

func appendRecordHeader(b []byte, r *ring2.Record) []byte {
	b = order.AppendUint64(b, r.Seq)
	b = order.AppendUint16(b, uint16(r.Kind))
	b = order.AppendUint16(b, r.Flags)
	b = order.AppendUint32(b, r.Rows)
	b = order.AppendUint64(b, r.CaptureNS)
	b = order.AppendUint64(b, r.Step)
	b = order.AppendUint32(b, r.Layout)
	return append(b, 0, 0, 0, 0)
}

// parseRecord reads the body of a record or snapshot frame. The payload aliases it.
func parseRecord(b []byte) (ring2.Record, error) {
	if len(b) < recordHeaderBytes {
		return ring2.Record{}, fmt.Errorf("record in %d bytes; at least %d", len(b), recordHeaderBytes)
	}
	r := ring2.Record{Seq: order.Uint64(b), Kind: ring2.Kind(order.Uint16(b[8:])), Flags: order.Uint16(b[10:]),
		Rows: order.Uint32(b[12:]), CaptureNS: order.Uint64(b[16:]), Step: order.Uint64(b[24:]),
		Layout: order.Uint32(b[32:])}
	if r.Aborted() {
		return r, nil
	}
	r.Payload = b[recordHeaderBytes:len(b):len(b)]
	return r, nil
}

func parseJSON(b []byte, into any) error {
	if len(b) > maxJSONBytes {
		return fmt.Errorf("description of %d bytes; at most %d", len(b), maxJSONBytes)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

func encodeJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("BUG: a description of a session is always JSON: " + err.Error())
	}
	return b
}
