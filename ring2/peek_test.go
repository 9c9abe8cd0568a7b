package ring2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// peekAt maps a writer's memory as another process would: by /proc, for reading.
func peekAt(t *testing.T, w *Writer) *Peek {
	t.Helper()
	var files [2]*os.File
	for i, fd := range []int{w.memory.ctlFD, w.memory.dataFD} {
		f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	p, err := MapPeek(files[0], files[1])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

var peekLayout = []LayoutEntry{{Hook: "h", DType: I64, Shape: []uint32{512}}}

// peekStep writes one step whose capture says its step in each word.
func peekStep(t *testing.T, w *Writer, layout uint32) {
	s, err := w.BeginStep([]StepRange{{Number: 1, Count: 1, LayoutMask: 1}}, []uint32{layout})
	if err != nil {
		t.Error(err)
		return
	}
	for b := s.Span(0, 0); len(b) > 0; b = b[8:] {
		binary.LittleEndian.PutUint64(b, s.Step())
	}
	s.Commit()
}

func peekWriter(t *testing.T, o *opened) (w *Writer, layout uint32) {
	t.Helper()
	w = newTestWriter(t, WriterOptions{Socket: o.path, DescCount: 16, DataBytes: minDataBytes, Mode: Complete,
		StepStallBudget: 10 * time.Second})
	layout, err := w.DefineLayout(peekLayout)
	if err == nil {
		err = w.OpenRequest(RequestOpen{Number: 1})
	}
	if err != nil {
		t.Fatal(err)
	}
	return w, layout
}

// observer looks at records and counts what it sees.
type observer struct {
	t      *testing.T
	p      *Peek
	sights map[string]int
	buf    []byte
}

// look checks that what is shown as whole is one record.
func (o *observer) look(seq uint64) {
	g, sight := o.p.Look(seq)
	o.sights["look "+sight.String()]++
	if sight != SightWhole {
		return
	}
	if g.Seq != seq {
		o.t.Errorf("a look at record %d shows record %d", seq, g.Seq)
	}
	if o.buf, sight = o.p.Payload(&g, o.buf); sight != SightWhole {
		o.sights["payload "+sight.String()]++
		return
	}
	o.sights[g.Kind.String()]++
	if g.Kind == KindStep {
		if step, err := ParseStep(o.buf); err != nil || step.Step != g.Step {
			o.t.Errorf("STEP %d shows step %d, %v", g.Step, step.Step, err)
		}
	}
	for b := o.buf; g.Kind == KindCapture && len(b) >= 8; b = b[8:] {
		if got := binary.LittleEndian.Uint64(b); got != g.Step {
			o.t.Fatalf("the capture of step %d holds a word of step %d", g.Step, got)
		}
	}
}

// releaseAll reads to the end of a session and releases everything at once.
func releaseAll(s *Session) error {
	var records []Record
	for {
		var err error
		if records, err = s.Next(context.Background(), records[:0]); err != nil {
			return err
		}
		s.Release(records[len(records)-1].Seq + 1)
	}
}

// What a look at a ring shows as whole must be one record, and never parts of two,
// however often the writer laps it meanwhile.
func TestAPeekNeverMixesTwoRecordsWhileItIsLapped(t *testing.T) {
	const steps = 5000
	o := listen(t, ListenerOptions{})
	w, layout := peekWriter(t, o)
	s := accept(t, o.l)
	read, written := make(chan error, 1), make(chan struct{})
	go func() { read <- releaseAll(s) }()
	go func() {
		defer close(written)
		for range steps {
			peekStep(t, w, layout)
		}
		closeSoon(t, w)
	}()
	see := &observer{t: t, p: peekAt(t, w), sights: map[string]int{}}
	for running := true; running; {
		select {
		case <-written:
			running = false
		default:
		}
		claim := see.p.State().Claim
		for seq := claim - min(claim, 20); seq != claim+2; seq++ {
			see.look(seq)
		}
	}
	if err := <-read; !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	t.Log(see.sights)
	if see.sights["step"] == 0 || see.sights["capture"] == 0 {
		t.Errorf("nothing was seen: %v", see.sights)
	}
	if _, sight := see.p.Look(0); sight != SightGone {
		t.Errorf("record 0 is %s after %d steps", sight, steps)
	}
	if _, sight := see.p.Look(see.p.State().Claim); sight != SightPending {
		t.Errorf("a record that was never claimed is %s", sight)
	}
}

// Bytes without a checksum mean nothing once the writer may use them again.
func TestAPeekDoesNotShowCapturesThatWereReleased(t *testing.T) {
	o := listen(t, ListenerOptions{})
	w, layout := peekWriter(t, o)
	s := accept(t, o.l)
	peekStep(t, w, layout)
	p := peekAt(t, w)
	seq := p.State().Claim - 1
	g, sight := p.Look(seq)
	if sight != SightWhole || g.Kind != KindCapture || g.Bytes != 4096 || g.Rows != 1 || g.Payload != nil {
		t.Fatalf("%s %+v", sight, g)
	}
	if b, sight := p.Payload(&g, nil); sight != SightWhole || len(b) != 4096 {
		t.Errorf("before the release: %s, %d bytes", sight, len(b))
	}
	var records []Record
	for len(records) < int(seq)+1 {
		var err error
		if records, err = s.Next(patience(t), records); err != nil {
			t.Fatal(err)
		}
	}
	s.Release(seq + 1)
	if _, sight := p.Payload(&g, nil); sight != SightGone {
		t.Errorf("after the release: %s", sight)
	}
	step, _ := p.Look(seq - 1)
	if b, sight := p.Payload(&step, nil); sight != SightWhole || step.Kind != KindStep || len(b) == 0 {
		t.Errorf("a STEP, whose checksum fits, is %s after the release", sight)
	}
	st := p.State()
	if st.Release != seq+1 || st.Producer.Steps != 1 || st.ReaderBeatNS == 0 || p.Config().Epoch != w.Epoch() ||
		Age(st.ReaderBeatNS) < 0 || Age(st.ReaderBeatNS+1e18) != 0 {
		t.Errorf("state %+v", st)
	}
}

// Somebody who only looks must not be noticed: no word of the ring changes.
func TestAPeekWritesNothing(t *testing.T) {
	pair := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes})
	ranges, layouts := smallStep(t, pair.w)
	begin(t, pair.w, ranges, layouts).Commit()
	m := pair.w.memory
	ctl, data := slices.Clone(m.ctl), slices.Clone(m.data)
	p, err := OpenPeek(m.ctl, m.data)
	if err != nil {
		t.Fatal(err)
	}
	var buf []byte
	for seq := range p.State().Claim + 3 {
		if g, sight := p.Look(seq); sight == SightWhole {
			buf, _ = p.Payload(&g, buf)
		}
	}
	p.Close()
	// The background of the writer only counts on with its beat.
	clear(ctl[abiProducerOff+abiProducerBeatNSOff:][:8])
	clear(m.ctl[abiProducerOff+abiProducerBeatNSOff:][:8])
	if !bytes.Equal(ctl, m.ctl) || !bytes.Equal(data, m.data) {
		t.Error("a look changed the ring")
	}
}

// A descriptor that is being written, or damaged, must not be believed.
func TestAPeekDetectsEveryFlippedBitOfADescriptor(t *testing.T) {
	pair := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes})
	ranges, layouts := smallStep(t, pair.w)
	begin(t, pair.w, ranges, layouts).Commit()
	p, err := OpenPeek(pair.w.memory.ctl, pair.w.memory.data)
	if err != nil {
		t.Fatal(err)
	}
	seq := p.State().Claim - 1
	for i := range abiDescBytes {
		b := &bytesOf(p.desc(seq))[i]
		for bit := range 8 {
			*b ^= 1 << bit
			if _, sight := p.Look(seq); sight == SightWhole {
				t.Errorf("bit %d of byte %d: %s", bit, i, sight)
			}
			*b ^= 1 << bit
		}
	}
	if _, sight := p.Look(seq); sight != SightWhole {
		t.Errorf("the whole one is %s", sight)
	}
	// Good checksums, and contents that would read past the end or cost gigabytes.
	for name, lie := range map[string]func(*abiDesc){
		"seq":           func(d *abiDesc) { d.Seq++ },
		"position":      func(d *abiDesc) { d.DataPos, d.DataLen = minDataBytes-64, 65 },
		"length":        func(d *abiDesc) { d.DataLen = math.MaxUint32 },
		"control bytes": func(d *abiDesc) { d.DataPos, d.Kind, d.DataLen = 0, abiKindModel, maxControlRecord+1 },
	} {
		whole := *p.desc(seq)
		lie(p.desc(seq))
		p.desc(seq).CRC32C = p.desc(seq).checksum()
		if _, sight := p.Look(seq); sight != SightTorn {
			t.Errorf("%s: %s", name, sight)
		}
		*p.desc(seq) = whole
	}
}

// Memory that is no ring, or could vanish under a mapping, is refused.
func TestAPeekAtSomethingElseIsAnError(t *testing.T) {
	if _, err := OpenPeek(make([]byte, 10), nil); err == nil {
		t.Error("ten bytes are a ring")
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := MapPeek(f, f); err == nil || !strings.Contains(err.Error(), "not a memfd") {
		t.Errorf("a plain file: %v", err)
	}
}

// A journal that grows is how one who comes late learns what is alive.
func TestTheJournalOfALivingWriterCanBeRead(t *testing.T) {
	state := t.TempDir()
	w := newTestWriter(t, WriterOptions{StateDir: state})
	ranges, layouts := smallStep(t, w)
	begin(t, w, ranges, layouts).Commit()
	files, err := filepath.Glob(filepath.Join(state, "*", "0*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{0, 1, 30} {
		var kinds []string
		visit := func(r Record) { kinds = append(kinds, r.Kind.String()) }
		epoch, err := ReadJournal(bytes.NewReader(text[:len(text)-cut]), visit)
		want := []string{"layout", "request_open", "step"}
		if cut > 0 {
			want = want[:2]
		}
		if err != nil || epoch != w.Epoch() || !slices.Equal(kinds, want) {
			t.Errorf("without %d bytes: epoch %x, %v, %v", cut, epoch, kinds, err)
		}
	}
	if _, err := ReadJournal(strings.NewReader("what is this? it is not a journal"), nil); err == nil {
		t.Error("text is a journal")
	}
}
