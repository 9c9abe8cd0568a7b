package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

// Outcomes of an abort.
const (
	AbortStopped  = "stopped"
	AbortFinished = "finished" // it had ended before
	AbortUnknown  = "unknown"  // no such request here, or the command expired
	AbortError    = "error"    // nobody knows; Error says why
)

// Bounds of abort messages.
const (
	MaxAbortBytes     = 64 << 10 // of one message
	maxAbortTextBytes = 4096     // of one text
)

// AbortCommand asks the engine of a rank to stop one request. It is sent on
// AbortSubject as JSON; the answer is an AbortReply.
type AbortCommand struct {
	Epoch         uint64 // of the writer that captured the rows
	Number        uint64 // sequence number in that epoch
	Sample        int32
	EngineID      string // the engine's own id of the request
	Position      int32  // of the token that decided, from 0
	ExpiresWallNS int64  // ns since 1970; from then on the command means nothing
	AlertID       string
}

// AbortReply is the answer of an engine. FinalLength is the request's length in
// tokens, where the engine said.
type AbortReply struct {
	Outcome     string `json:"outcome"`
	FinalLength int32  `json:"final_length"`
	Error       string `json:"error,omitempty"`
}

// abortCommand is the JSON of a command: the epoch is text, because JSON's
// numbers lose digits of it in other languages.
type abortCommand struct {
	Epoch         string `json:"epoch"`
	Number        uint64 `json:"number"`
	Sample        int32  `json:"sample"`
	EngineID      string `json:"engine_id"`
	Position      int32  `json:"position"`
	ExpiresWallNS int64  `json:"expires_wall_ns"`
	AlertID       string `json:"alert_id"`
}

// Encode writes the command. Texts are cut at 4096 bytes.
func (c AbortCommand) Encode() []byte {
	return encodeAbort(abortCommand{Epoch: fmt.Sprintf("%016x", c.Epoch), Number: c.Number, Sample: c.Sample,
		EngineID: cutAbortText(c.EngineID), Position: c.Position, ExpiresWallNS: c.ExpiresWallNS,
		AlertID: cutAbortText(c.AlertID)})
}

// ParseAbortCommand reads a command that may come from anywhere. Unknown fields
// belong to a later version and are passed over.
func ParseAbortCommand(data []byte) (AbortCommand, error) {
	var j abortCommand
	if err := decodeAbort(data, &j); err != nil {
		return AbortCommand{}, fmt.Errorf("read abort command: %w", err)
	}
	epoch, err := strconv.ParseUint(j.Epoch, 16, 64)
	if err != nil || len(j.Epoch) != 16 {
		return AbortCommand{}, fmt.Errorf("read abort command: epoch %q is not 16 hex digits", clip(j.Epoch))
	}
	if j.Sample < 0 || j.Position < 0 || j.ExpiresWallNS <= 0 {
		return AbortCommand{}, fmt.Errorf("read abort command: sample %d, position %d, expires_wall_ns %d: want 0 or more, "+
			"and a time", j.Sample, j.Position, j.ExpiresWallNS)
	}
	if len(j.EngineID) > maxAbortTextBytes || len(j.AlertID) > maxAbortTextBytes {
		return AbortCommand{}, fmt.Errorf("read abort command: a text is longer than %d bytes", maxAbortTextBytes)
	}
	return AbortCommand{Epoch: epoch, Number: j.Number, Sample: j.Sample, EngineID: j.EngineID, Position: j.Position,
		ExpiresWallNS: j.ExpiresWallNS, AlertID: j.AlertID}, nil
}

// Encode writes the reply. The error is cut at 4096 bytes.
func (r AbortReply) Encode() []byte {
	r.Error = cutAbortText(r.Error)
	return encodeAbort(r)
}

// ParseAbortReply reads a reply that may come from anywhere.
func ParseAbortReply(data []byte) (AbortReply, error) {
	var r AbortReply
	if err := decodeAbort(data, &r); err != nil {
		return AbortReply{}, fmt.Errorf("read abort reply: %w", err)
	}
	switch r.Outcome {
	case AbortStopped, AbortFinished, AbortUnknown, AbortError:
	default:
		return AbortReply{}, fmt.Errorf("read abort reply: outcome %q is unknown", clip(r.Outcome))
	}
	if r.FinalLength < 0 {
		return AbortReply{}, fmt.Errorf("read abort reply: final_length %d is negative", r.FinalLength)
	}
	return r, nil
}

func encodeAbort(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic("BUG: an abort is always JSON: " + err.Error())
	}
	return data
}

func decodeAbort(data []byte, into any) error {
	if len(data) > MaxAbortBytes {
		return fmt.Errorf("it has %d bytes; at most %d", len(data), MaxAbortBytes)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

// cutAbortText cuts a text between two letters.
func cutAbortText(s string) string {
	if len(s) <= maxAbortTextBytes {
		return s
	}
	n := maxAbortTextBytes
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
