package ring2

import (
	"bytes"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"sync/atomic"
	"testing"
	"unsafe"
)

const goldenRing = "testdata/ring_v1.bin"

// The parts of a ring image, one after the other, as ABI.md says.
const (
	goldenDescs = 16
	goldenData  = 4096
	goldenBytes = abiConfigBytes + abiProducerBytes + abiConsumerBytes + goldenDescs*abiDescBytes + goldenData
)

// heapMemory is memory for atomic words, where the race detector sees it.
func heapMemory(n int) []byte {
	words := make([]uint64, (n+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), n)
}

// heapRing makes an empty ring. Its consumer zone lies in ctl, as a writer maps it.
func heapRing(t testing.TB, descs, dataBytes int) (ring, []byte) {
	t.Helper()
	ctl := heapMemory(int(ctlBytes(uint64(descs))))
	r, err := ringOn(ctl, ctl[abiConsumerOff:], heapMemory(dataBytes), uint64(descs))
	if err != nil {
		t.Fatal(err)
	}
	return r, ctl
}

// imageParts are the pieces of ctl and data in the order of an image.
func imageParts(ctl, data []byte) [][]byte {
	var parts [][]byte
	for _, p := range [...][2]int{{abiConfigOff, abiConfigBytes}, {abiProducerOff, abiProducerBytes},
		{abiConsumerOff, abiConsumerBytes}, {abiDescOff, goldenDescs * abiDescBytes}} {
		parts = append(parts, ctl[p[0]:p[0]+p[1]])
	}
	return append(parts, data)
}

func loadGoldenRing(t testing.TB) (r ring, ctl []byte) {
	t.Helper()
	image, err := os.ReadFile(goldenRing)
	if err != nil {
		t.Fatal(err)
	}
	if len(image) != goldenBytes {
		t.Fatalf("%s has %d bytes, want %d", goldenRing, len(image), goldenBytes)
	}
	r, ctl = heapRing(t, goldenDescs, goldenData)
	for _, part := range imageParts(ctl, r.data) {
		image = image[copy(part, image):]
	}
	return r, ctl
}

// readRing reads everything that is committed. Payloads alias the ring.
func readRing(r ring, ctl []byte) ([]Record, error) {
	if _, err := parseConfig(ctl, uint64(len(r.data))); err != nil {
		return nil, err
	}
	core := newReaderCore(r, 0)
	var out []Record
	for {
		var rec Record
		ok, err := core.poll(&rec)
		if err != nil || !ok {
			return out, err
		}
		out = append(out, rec)
	}
}

func cloneRecords(records []Record) []Record {
	out := append([]Record(nil), records...)
	for i := range out {
		out[i].Payload = bytes.Clone(out[i].Payload)
	}
	return out
}

// peerRow is what testdata/peer/peer.c writes for one row.
func peerRow(hook string, position int) []byte {
	var b []byte
	switch hook {
	case "resid_post":
		for i := range 8 {
			b = order.AppendUint32(b, math.Float32bits(float32(position)+float32(i)/16))
		}
	case "token_ids":
		b = order.AppendUint32(b, uint32(1000+position))
	case "logits":
		for i := range 2 {
			b = order.AppendUint32(b, math.Float32bits(float32(2*position+i)))
		}
	}
	return b
}

var (
	peerLayout = Layout{ID: 0, Entries: []LayoutEntry{
		{Hook: "resid_post", Layer: 3, DType: F32, Shape: []uint32{8}, ShardCount: 1},
		{Hook: "token_ids", Layer: -1, DType: I32, ShardCount: 1},
		{Hook: "logits", Layer: -1, DType: F32, Select: SelectSampled, Shape: []uint32{2}, ShardCount: 1}}}
	peerModel = Model{Name: "stranger", Revision: "r1", WeightsDigest: "sha256:00", Quantisation: "none", Engine: "peer",
		EngineVersion: "1", Layers: 4, DModel: 8, Vocab: 2048}
)

const peerPrompt = 5

// peerStep is the STEP that peer.c writes, of which seq is the record.
func peerStep(step, seq uint64) Step {
	r := StepRange{Number: 1, Position: peerPrompt - 1 + uint32(step), Count: 1, Phase: PhaseDecode, Sampled: true,
		LayoutMask: 1}
	if step == 0 {
		r.Position, r.Count, r.Phase = 0, peerPrompt, PhasePrefill
	}
	return Step{Step: step, Layouts: []StepLayout{{CaptureSeq: seq + 1}}, Ranges: []StepRange{r}}
}

func peerOpen(tenant, request string, steps uint32, wallNS uint64) RequestOpen {
	return RequestOpen{Number: 1, ExternalID: request, EngineID: "peer-1", Tenant: tenant, OptIn: true,
		PromptTokens: peerPrompt, MaxTokens: steps, OpenWallNS: wallNS, Labels: []Label{{"written_in", "C"}}}
}

func peerEnd(steps uint32, wallNS uint64) RequestEnd {
	return RequestEnd{Number: 1, PromptTokens: peerPrompt, GeneratedTokens: steps, Passes: 1, Reason: FinishLength,
		EndWallNS: wallNS}
}

// checkPeerRecords checks a whole stream of peer.c: every record, row and byte.
func checkPeerRecords(t *testing.T, records []Record, tenant, request string, steps int) {
	t.Helper()
	if want := 3 + 2*steps + 2; len(records) != want {
		t.Fatalf("read %d records, want %d", len(records), want)
	}
	for i := range records {
		if records[i].Seq != uint64(i) || records[i].Aborted() {
			t.Fatalf("record %d has seq %d and flags %#x", i, records[i].Seq, records[i].Flags)
		}
	}
	if m, err := ParseModel(records[0].Payload); err != nil || m != peerModel {
		t.Errorf("MODEL is %+v, %v", m, err)
	}
	if l, err := ParseLayout(records[1].Payload); err != nil || !reflect.DeepEqual(l, peerLayout) {
		t.Errorf("LAYOUT is %+v, %v", l, err)
	}
	open, err := ParseRequestOpen(records[2].Payload)
	if err != nil || !reflect.DeepEqual(open, peerOpen(tenant, request, uint32(steps), open.OpenWallNS)) {
		t.Errorf("REQUEST_OPEN is %+v, %v", open, err)
	}
	for i := range steps {
		checkPeerStep(t, records[3+2*i], records[4+2*i], uint64(i))
	}
	end, err := ParseRequestEnd(records[len(records)-2].Payload)
	if err != nil || end != peerEnd(uint32(steps), end.EndWallNS) {
		t.Errorf("REQUEST_END is %+v, %v", end, err)
	}
	if bye := records[len(records)-1]; bye.Kind != KindBye || len(bye.Payload) > 0 {
		t.Errorf("the last record is %s with %d bytes", bye.Kind, len(bye.Payload))
	}
}

func checkPeerStep(t *testing.T, stepRecord, capture Record, step uint64) {
	t.Helper()
	if stepRecord.Kind != KindStep || capture.Kind != KindCapture || stepRecord.Step != step || capture.Step != step {
		t.Fatalf("step %d: records are %s of step %d and %s of step %d", step, stepRecord.Kind, stepRecord.Step,
			capture.Kind, capture.Step)
	}
	s, err := ParseStep(stepRecord.Payload)
	if err != nil || !reflect.DeepEqual(s, peerStep(step, stepRecord.Seq)) {
		t.Fatalf("STEP is %+v, %v", s, err)
	}
	entries, err := SplitCapture(&peerLayout, &s, 0, capture.Payload)
	if err != nil {
		t.Fatal(err)
	}
	r := s.Ranges[0]
	if capture.Rows != r.Count || entries[0].Rows != int(r.Count) || entries[2].Rows != 1 {
		t.Fatalf("step %d: %d rows, entries have %d, %d, %d", step, capture.Rows, entries[0].Rows, entries[1].Rows,
			entries[2].Rows)
	}
	for i := range entries {
		for row := range entries[i].Rows {
			position := int(r.Position) + row
			if peerLayout.Entries[i].Select == SelectSampled {
				position = int(r.Position+r.Count) - 1
			}
			if got, want := entries[i].Row(row), peerRow(peerLayout.Entries[i].Hook, position); !bytes.Equal(got, want) {
				t.Fatalf("step %d: row %d of %s is %x, want %x", step, row, peerLayout.Entries[i].Hook, got, want)
			}
		}
	}
}

// A reader of this or any later version must understand the rings of version 1.
func TestGoldenRingIsUnderstood(t *testing.T) {
	r, ctl := loadGoldenRing(t)
	c, err := parseConfig(ctl, goldenData)
	if err != nil || c != goldenConfig {
		t.Errorf("config is %+v, %v", c, err)
	}
	records, err := readRing(r, ctl)
	if err != nil {
		t.Fatal(err)
	}
	checkPeerRecords(t, records, "acme", "req-1", 3)
	core := newReaderCore(r, 0)
	p := core.counters()
	if want := (ProducerCounters{CapturedRows: 17, Steps: 3, Closing: true}); p != want {
		t.Errorf("counters are %+v, want %+v", p, want)
	}
}

var goldenConfig = Config{ABIMajor: 1, DescCount: goldenDescs, DataBytes: goldenData, Epoch: 0x0102030405060709,
	ReserveDescs: 2, ReserveBytes: 256, ProducerPID: 42, RankCount: 1, Mode: Complete, WallMinusMonoNS: 4096,
	EngineInstance: "stranger-0"}

// writeGoldenRing lets the Go writer say what peer.c says.
func writeGoldenRing(t *testing.T) []byte {
	t.Helper()
	r, ctl := heapRing(t, goldenDescs, goldenData)
	clock := uint64(0)
	now := func() uint64 { clock++; return clock }
	core := newWriterCore(r, goldenConfig, now, 0, 0)
	put := func(kind Kind, payload []byte) {
		if _, ok := core.putControl(kind, 0, payload); !ok {
			t.Fatalf("%s record finds no room", kind)
		}
	}
	put(KindModel, AppendModel(nil, peerModel))
	put(KindLayout, AppendLayout(nil, peerLayout))
	put(KindRequestOpen, AppendRequestOpen(nil, peerOpen("acme", "req-1", 3, now())))
	for step := range uint64(3) {
		s := peerStep(step, core.claim)
		plans := []plan{{layout: &peerLayout}}
		plans[0].measure(0, s.Ranges, nil)
		payload := AppendStep(nil, s)
		pos, ok := core.planStep(plans, len(payload))
		if !ok || plans[0].outcome != ReasonNone {
			t.Fatalf("step %d finds no room: %s", step, plans[0].outcome)
		}
		core.claimStep(plans, pos, step, payload)
		out := core.span(plans[0].pos, plans[0].bytes)
		for i, e := range peerLayout.Entries {
			for row := range plans[0].rows(i) {
				position := int(s.Ranges[0].Position) + row
				if e.Select == SelectSampled {
					position = int(s.Ranges[0].Position+s.Ranges[0].Count) - 1
				}
				copy(out[row*e.RowBytes():], peerRow(e.Hook, position))
			}
			out = out[alignUp(plans[0].rows(i)*e.RowBytes()):]
		}
		core.finish(&plans[0], false)
		core.endStep()
	}
	put(KindRequestEnd, AppendRequestEnd(nil, peerEnd(3, now())))
	put(KindBye, nil)
	atomic.StoreUint32(&r.producer.Closing, 1)
	return bytes.Join(imageParts(ctl, r.data), nil)
}

// Two writers that share no code agree on every byte of a ring.
func TestGoWriterWritesTheGoldenRing(t *testing.T) {
	want, err := os.ReadFile(goldenRing)
	if err != nil {
		t.Fatal(err)
	}
	reportFirstDifference(t, writeGoldenRing(t), want)
}

func TestCPeerWritesTheGoldenRing(t *testing.T) {
	want, err := os.ReadFile(goldenRing)
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "ring.bin")
	peer := buildC(t, "gcc", "c11", "testdata/peer/peer.c")
	if out, err := exec.Command(peer, "--image", image).CombinedOutput(); err != nil {
		t.Fatalf("peer --image: %v\n%s", err, out)
	}
	got, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	reportFirstDifference(t, got, want)
}

func reportFirstDifference(t *testing.T, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("image has %d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("image differs at byte %d: %#x, want %#x", i, got[i], want[i])
		}
	}
}

// Cosmic rays, broken DMA, a writer with a bug: whatever flips a bit under a
// checksum, the reader never shows something else for what was written.
func TestEveryFlippedBitIsDetectedOrHarmless(t *testing.T) {
	r, ctl := loadGoldenRing(t)
	records, err := readRing(r, ctl)
	if err != nil {
		t.Fatal(err)
	}
	config, err := parseConfig(ctl, goldenData)
	if err != nil {
		t.Fatal(err)
	}
	golden := cloneRecords(records)
	covered := [][]byte{ctl[:abiConfigBytes], ctl[abiDescOff : abiDescOff+len(golden)*abiDescBytes]}
	for i := range records {
		if records[i].Kind != KindCapture {
			covered = append(covered, records[i].Payload)
		}
	}
	detected, harmless, unpublished := 0, 0, 0
	for part, b := range covered {
		for bit := range 8 * len(b) {
			b[bit/8] ^= 1 << (bit % 8)
			got, err := readRing(r, ctl)
			again, configErr := parseConfig(ctl, goldenData)
			var corrupt *corruptError
			switch {
			case configErr == nil && again != config:
				t.Errorf("part %d, bit %d: the config changed and is accepted: %+v", part, bit, again)
			case len(got) > len(golden) || len(got) > 0 && !reflect.DeepEqual(got, golden[:len(got)]):
				t.Errorf("part %d, bit %d: the reader shows something else", part, bit)
			case err != nil && configErr == nil && !errors.As(err, &corrupt):
				t.Errorf("part %d, bit %d: %v does not quarantine the ring", part, bit, err)
			case err != nil:
				detected++
			case len(got) == len(golden):
				harmless++
			case atomic.LoadUint64(&r.desc(uint64(len(got))).Commit) == 0:
				unpublished++
			default:
				t.Errorf("part %d, bit %d: the reader stops silently after %d records", part, bit, len(got))
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
	}
	// Only the reserved word behind the config's checksum is not covered. A commit
	// word of 1, 2, 4 or 8 can turn into the 0 of a record that is not there yet.
	if harmless != 32 || unpublished != 4 {
		t.Errorf("%d flips are harmless, want 32; %d unpublish a record, want 4; %d are detected", harmless, unpublished,
			detected)
	}
}
