package ring2

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// vector is one payload and what it says. The bytes were made from ABI.md, not
// by the code under test.
type vector struct {
	Kind    string          `json:"kind"`
	Code    Kind            `json:"code"`
	Meaning json.RawMessage `json:"meaning"`
	Hex     string          `json:"hex"`
}

// vectorCapture is the meaning of a CAPTURE: the rows of each entry in hex.
type vectorCapture struct {
	Layout Layout
	Step   Step
	Rows   [][]string
}

// vectorObituary is an Obituary with its payload in hex.
type vectorObituary struct {
	DeadEpoch, Seq uint64
	Kind           Kind
	Flags          uint16
	PayloadHex     string
}

func loadVectors(t testing.TB) []vector {
	t.Helper()
	text, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []vector
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func (v *vector) bytes(t testing.TB) []byte {
	t.Helper()
	b, err := hex.DecodeString(v.Hex)
	if err != nil {
		t.Fatalf("%s: %v", v.Kind, err)
	}
	return b
}

// checkBothWays checks that parsing gives the meaning and appending the bytes.
func checkBothWays[T any](t *testing.T, v *vector, parse func([]byte) (T, error), appendTo func([]byte, T) []byte) {
	t.Helper()
	var want T
	decoder := json.NewDecoder(bytes.NewReader(v.Meaning))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&want); err != nil {
		t.Fatalf("%s: %v", v.Kind, err)
	}
	b := v.bytes(t)
	got, err := parse(b)
	if err != nil || !sameMeaning(got, want) {
		t.Errorf("%s parses as %+v, %v; want %+v", v.Kind, got, err, want)
	}
	if again := appendTo(nil, want); !bytes.Equal(again, b) {
		t.Errorf("%s is written as\n%x, want\n%x", v.Kind, again, b)
	}
	for n := range b {
		if _, err := parse(b[:n]); err == nil && v.Code != KindObituary {
			t.Errorf("%s: the first %d of %d bytes parse", v.Kind, n, len(b))
		}
	}
	if _, err := parse(append(bytes.Clone(b), 0)); err == nil && v.Code != KindObituary {
		t.Errorf("%s parses with a byte too many", v.Kind)
	}
}

// sameMeaning compares by what JSON shows, so that a nil slice equals an empty one.
func sameMeaning(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && (bytes.Equal(x, y) ||
		bytes.Equal(bytes.ReplaceAll(x, []byte("null"), []byte("[]")), bytes.ReplaceAll(y, []byte("null"), []byte("[]"))))
}

func TestEveryKindHasAVectorThatReadsAndWritesTheSame(t *testing.T) {
	seen := map[Kind]bool{}
	for _, v := range loadVectors(t) {
		seen[v.Code] = true
		switch v.Code {
		case KindModel:
			checkBothWays(t, &v, ParseModel, AppendModel)
		case KindLayout:
			checkBothWays(t, &v, ParseLayout, AppendLayout)
		case KindRequestOpen:
			checkBothWays(t, &v, ParseRequestOpen, AppendRequestOpen)
		case KindStep:
			checkBothWays(t, &v, ParseStep, AppendStep)
		case KindCapture:
			checkCaptureVector(t, &v)
		case KindAmend:
			checkBothWays(t, &v, ParseAmend, AppendAmend)
		case KindMissing:
			checkBothWays(t, &v, ParseMissing, AppendMissing)
		case KindRequestEnd:
			checkBothWays(t, &v, ParseRequestEnd, AppendRequestEnd)
		case KindObituary:
			checkBothWays(t, &v, parseVectorObituary, appendVectorObituary)
		case KindBye:
			if v.Hex != "" {
				t.Errorf("BYE has bytes %s, want none", v.Hex)
			}
		default:
			t.Errorf("vector of kind %s, which does not exist", v.Code)
		}
	}
	for k := KindModel; k <= KindBye; k++ {
		if !seen[k] {
			t.Errorf("no vector of kind %s", k)
		}
	}
}

func parseVectorObituary(b []byte) (vectorObituary, error) {
	o, err := ParseObituary(b)
	return vectorObituary{o.DeadEpoch, o.Seq, o.Kind, o.Flags, hex.EncodeToString(o.Payload)}, err
}

func appendVectorObituary(b []byte, o vectorObituary) []byte {
	payload, err := hex.DecodeString(o.PayloadHex)
	if err != nil {
		return nil
	}
	return AppendObituary(b, Obituary{o.DeadEpoch, o.Seq, o.Kind, o.Flags, payload})
}

func checkCaptureVector(t *testing.T, v *vector) {
	t.Helper()
	var want vectorCapture
	if err := json.Unmarshal(v.Meaning, &want); err != nil {
		t.Fatal(err)
	}
	b := v.bytes(t)
	entries, err := SplitCapture(&want.Layout, &want.Step, 0, b)
	if err != nil {
		t.Fatal(err)
	}
	got := make([][]string, len(entries))
	for i := range entries {
		for row := range entries[i].Rows {
			got[i] = append(got[i], hex.EncodeToString(entries[i].Row(row)))
		}
	}
	if !reflect.DeepEqual(got, want.Rows) {
		t.Errorf("CAPTURE holds %v, want %v", got, want.Rows)
	}
	for n := range b {
		if _, err := SplitCapture(&want.Layout, &want.Step, 0, b[:n]); err == nil {
			t.Errorf("the first %d of %d bytes of the capture are split", n, len(b))
		}
	}
	twice, err := AppendEntries(entries, &want.Layout, &want.Step, 0, b)
	if err != nil || !reflect.DeepEqual(twice[len(entries):], entries) || len(twice) != 2*len(entries) {
		t.Errorf("entries behind others: %v, %v", twice, err)
	}
	kept, err := AppendEntries(twice, &want.Layout, &want.Step, 0, b[:len(b)/2])
	if err == nil || len(kept) != len(twice) {
		t.Errorf("half a capture leaves %d of %d entries, %v", len(kept), len(twice), err)
	}
	filled := append(bytes.Clone(b), make([]byte, alignUp(len(b))-len(b))...)
	if _, err := SplitCapture(&want.Layout, &want.Step, 0, filled); err != nil {
		t.Errorf("a capture that is filled to 64 bytes: %v", err)
	}
	if _, err := SplitCapture(&want.Layout, &want.Step, 0, append(filled, 0)); err == nil {
		t.Error("a capture with a byte too many is split")
	}
}

// Counts that their bytes would justify, but no writer may make.
func TestCountsAboveTheirBoundAreRefused(t *testing.T) {
	entry := LayoutEntry{Hook: "h", Layer: -1, DType: U8, ShardCount: 1}
	deep := entry
	deep.Shape = slices.Repeat([]uint32{1}, MaxDims+1)
	long := strings.Repeat("x", MaxTextBytes)
	ranges := slices.Repeat([]StepRange{{Count: 1}}, MaxStepRanges+1)
	for name, c := range map[string]struct {
		kind  Kind
		bound []byte // the most that is allowed, nil: not tried
		above []byte
	}{
		"layouts of a step": {KindStep, AppendStep(nil, Step{Layouts: make([]StepLayout, MaxStepLayouts)}),
			AppendStep(nil, Step{Layouts: make([]StepLayout, MaxStepLayouts+1)})},
		"ranges of a step": {KindStep, AppendStep(nil, Step{Ranges: ranges[1:]}), AppendStep(nil, Step{Ranges: ranges})},
		"ranges of an amendment": {KindAmend, AppendAmend(nil, Amend{Ranges: make([]AmendRange, MaxStepRanges)}),
			AppendAmend(nil, Amend{Ranges: make([]AmendRange, MaxStepRanges+1)})},
		"missing ranges": {KindMissing, AppendMissing(nil, Missing{Ranges: make([]MissingRange, MaxStepRanges)}),
			AppendMissing(nil, Missing{Ranges: make([]MissingRange, MaxStepRanges+1)})},
		"entries of a layout": {KindLayout,
			AppendLayout(nil, Layout{Entries: slices.Repeat([]LayoutEntry{entry}, MaxLayoutEntries)}),
			AppendLayout(nil, Layout{Entries: slices.Repeat([]LayoutEntry{entry}, MaxLayoutEntries+1)})},
		"dimensions": {KindLayout, nil, AppendLayout(nil, Layout{Entries: []LayoutEntry{deep}})},
		"labels": {KindRequestOpen, AppendRequestOpen(nil, RequestOpen{Labels: make([]Label, MaxLabels)}),
			AppendRequestOpen(nil, RequestOpen{Labels: make([]Label, MaxLabels+1)})},
		"bytes of a text": {KindModel, AppendModel(nil, Model{Name: long}),
			slices.Concat(order.AppendUint16(nil, MaxTextBytes+1), []byte(long+"x"), make([]byte, 22))},
	} {
		if c.bound != nil && parseError(c.kind, c.bound) != nil {
			t.Errorf("%s at the bound: %v", name, parseError(c.kind, c.bound))
		}
		if parseError(c.kind, c.above) == nil {
			t.Errorf("%s above the bound are accepted", name)
		}
	}
}

func parseError(k Kind, b []byte) error {
	var err error
	switch k {
	case KindModel:
		_, err = ParseModel(b)
	case KindLayout:
		_, err = ParseLayout(b)
	case KindRequestOpen:
		_, err = ParseRequestOpen(b)
	case KindStep:
		_, err = ParseStep(b)
	case KindAmend:
		_, err = ParseAmend(b)
	case KindMissing:
		_, err = ParseMissing(b)
	}
	return err
}

// Rows without bytes would let an empty capture claim a million of them.
func TestEntriesThatNoPeerCanReadAreRefused(t *testing.T) {
	good := LayoutEntry{Hook: "h", Layer: -1, DType: F32, Shape: []uint32{2, 3}, Shard: 1, ShardCount: 2}
	if err := parseError(KindLayout, AppendLayout(nil, Layout{Entries: []LayoutEntry{good}})); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*LayoutEntry){
		"no dtype":              func(e *LayoutEntry) { e.DType = 0 },
		"a dtype of no version": func(e *LayoutEntry) { e.DType = 99 },
		"an unknown selection":  func(e *LayoutEntry) { e.Select = 2 },
		"layer -2":              func(e *LayoutEntry) { e.Layer = -2 },
		"an empty row":          func(e *LayoutEntry) { e.Shape = []uint32{4, 0} },
		"a row of 4 GiB":        func(e *LayoutEntry) { e.Shape = []uint32{1 << 30} },
		"a row that overflows":  func(e *LayoutEntry) { e.Shape = []uint32{1 << 31, 1 << 31, 1 << 31} },
		"shard 2 of 2":          func(e *LayoutEntry) { e.Shard = 2 },
	} {
		e := good
		spoil(&e)
		if err := parseError(KindLayout, AppendLayout(nil, Layout{Entries: []LayoutEntry{e}})); err == nil {
			t.Errorf("an entry with %s is accepted", name)
		}
	}
}

// Offsets of ragged rows are the writer's: they may be wrong from the start, or
// become wrong after they were checked.
func TestRaggedOffsetsThatLieGiveNoBytes(t *testing.T) {
	l := Layout{Entries: []LayoutEntry{{Hook: "h", Layer: -1, DType: U8, Ragged: true, ShardCount: 1}}}
	s := Step{Layouts: []StepLayout{{}}, Ranges: []StepRange{{Count: 2, LayoutMask: 1}}}
	make3 := func(offsets ...uint64) []byte {
		b := make([]byte, 64)
		for _, o := range offsets {
			b = order.AppendUint64(b, o)
		}
		b = append(b, "abcd"...)
		order.PutUint64(b, uint64(len(b)-64))
		return b
	}
	for _, offsets := range [][3]uint64{{0, 3, 2}, {2, 1, 4}, {0, 4, 5}, {0, 1 << 63, 4}, {5, 5, 5}} {
		if _, err := SplitCapture(&l, &s, 0, make3(offsets[:]...)); err == nil {
			t.Errorf("offsets %d of 4 bytes are accepted", offsets)
		}
	}
	good := make3(0, 1, 4)
	entries, err := SplitCapture(&l, &s, 0, good)
	if err != nil || string(entries[0].Row(0)) != "a" || string(entries[0].Row(1)) != "bcd" {
		t.Fatalf("rows are %q and %q, %v", entries[0].Row(0), entries[0].Row(1), err)
	}
	for _, late := range []uint64{3, 9, 1 << 63} {
		order.PutUint64(good[64:], late) // the first row now starts behind its end
		if row := entries[0].Row(0); row != nil {
			t.Errorf("after the offset became %d the row is %q", late, row)
		}
	}
}

// A damaged control payload that its checksum does not show, as one that changes
// while it is read, must still parse to nothing out of bounds.
func TestEveryFlippedBitOfAPayloadParsesWithoutHarm(t *testing.T) {
	for _, v := range loadVectors(t) {
		b := v.bytes(t)
		for bit := range 8 * len(b) {
			b[bit/8] ^= 1 << (bit % 8)
			parseAnything(v.Code, b)
			b[bit/8] ^= 1 << (bit % 8)
		}
	}
}

// parseAnything parses b as a payload of a kind and says how many items came out.
func parseAnything(k Kind, b []byte) int {
	switch k {
	case KindModel:
		m, _ := ParseModel(b)
		return len(m.Name)
	case KindLayout:
		l, _ := ParseLayout(b)
		return len(l.Entries)
	case KindRequestOpen:
		r, _ := ParseRequestOpen(b)
		return len(r.Labels)
	case KindStep:
		s, _ := ParseStep(b)
		return len(s.Ranges) + len(s.Layouts)
	case KindAmend:
		a, _ := ParseAmend(b)
		return len(a.Ranges)
	case KindMissing:
		m, _ := ParseMissing(b)
		return len(m.Ranges)
	case KindRequestEnd:
		r, _ := ParseRequestEnd(b)
		return int(r.Reason)
	case KindObituary:
		o, _ := ParseObituary(b)
		return len(o.Payload)
	}
	return 0
}
