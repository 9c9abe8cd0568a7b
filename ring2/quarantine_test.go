package ring2

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestACorruptRingIsQuarantinedAndOthersGoOn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "quarantine")
	o := listen(t, ListenerOptions{QuarantineDir: dir})
	bad := newTestWriter(t, WriterOptions{Socket: o.path, RankCount: 2})
	sick := accept(t, o.l)
	good := newTestWriter(t, WriterOptions{Socket: o.path, Rank: 1, RankCount: 2})
	well := accept(t, o.l)
	ranges, layouts := smallStep(t, bad)
	st := begin(t, bad, ranges, layouts)
	bad.core.desc(st.plans[0].seq).DataLen++ // a wild store
	d := bad.core.desc(st.plans[0].seq)
	sum := d.checksum()
	st.Commit()
	d.CRC32C = sum + 1
	var records []Record
	var err error
	for err == nil {
		records, err = sick.Next(context.Background(), records)
	}
	var c *corruptError
	if !errors.As(err, &c) || c.seq != 3 || len(records) != 3 || sick.Quarantined() == nil {
		t.Fatalf("after %d records: %v", len(records), err)
	}
	if _, again := sick.Next(context.Background(), nil); !errors.Is(again, err) {
		t.Errorf("the error does not stay: %v", again)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("%d dumps (%v)", len(files), err)
	}
	dump, err := os.ReadFile(filepath.Join(dir, files[0].Name()))
	if err != nil {
		t.Fatal(err)
	}
	if text := string(dump); strings.Count(text, "\ndescriptor ") != 64 || !strings.Contains(text, "config zone") ||
		!strings.Contains(text, "corrupt at record 3") {
		t.Errorf("the dump tells too little: %.300s", text)
	}
	if err := sick.Close(); err != nil {
		t.Fatal(err)
	}
	ranges, layouts = smallStep(t, good)
	begin(t, good, ranges, layouts).Commit()
	records = nil
	for len(records) < 4 {
		if records, err = well.Next(context.Background(), records); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if s, err := o.l.Accept(ctx); err == nil {
		t.Errorf("the corrupt ring of epoch %x attached again", s.Config().Epoch)
	}
	if got := o.l.Stats(); got.Quarantined != 1 || got.Dumps != 1 || got.Refused == 0 {
		t.Errorf("%+v", got)
	}
}

func TestDescriptorsThatMakeNoSenseAreNeverFollowed(t *testing.T) {
	for name, spoil := range map[string]func(d *abiDesc){
		"length past the end":   func(d *abiDesc) { d.DataLen = minDataBytes + 1 },
		"huge length":           func(d *abiDesc) { d.DataLen = ^uint32(0) },
		"position not aligned":  func(d *abiDesc) { d.DataPos++ },
		"position before":       func(d *abiDesc) { d.DataPos -= 64 },
		"position far ahead":    func(d *abiDesc) { d.DataPos += 4 * minDataBytes },
		"another record":        func(d *abiDesc) { d.Seq++ },
		"no payload checksum":   func(d *abiDesc) { d.Flags = 0 },
		"payload checksum":      func(d *abiDesc) { d.PayloadCRC32C++ },
		"length of the payload": func(d *abiDesc) { d.DataLen-- },
	} {
		p := quiet(t, WriterOptions{DescCount: 16, DataBytes: minDataBytes})
		smallStep(t, p.w) // records 0 and 1
		if err := p.w.OpenRequest(RequestOpen{Number: 7}); err != nil {
			t.Fatal(err)
		}
		d := p.w.core.desc(2)
		spoil(d)
		d.CRC32C = d.checksum()
		records, err := p.s.Next(context.Background(), nil)
		if err != nil || len(records) != 2 {
			t.Fatalf("%s: read %d records before it: %v", name, len(records), err)
		}
		if records, err = p.s.Next(context.Background(), nil); err == nil {
			t.Errorf("%s: read %+v", name, records)
		}
	}
	for name, commit := range map[string]uint64{"lapped": 3 + 16, "wild": 1 << 60, "cleared": 2} {
		p := quiet(t, WriterOptions{DescCount: 16, DataBytes: minDataBytes})
		smallStep(t, p.w)
		atomic.StoreUint64(&p.w.core.desc(2).Commit, commit)
		if _, err := p.s.Next(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
		if records, err := p.s.Next(context.Background(), nil); err == nil {
			t.Errorf("commit word %s: read %+v", name, records)
		}
	}
}

func TestWhatADeadEngineNeverCommittedIsNamedAndTheRestIsRead(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes})
	ranges, layouts := smallStep(t, p.w) // records 0, 1
	s := begin(t, p.w, ranges, []uint32{layouts[0], layouts[0], layouts[0]})
	held := []*Pending{s.Detach(0), s.Detach(2)}
	write(s, 1, ranges)
	s.Commit() // 2 STEP, 3 and 5 never come
	if err := p.w.OpenRequest(RequestOpen{Number: 2}); err != nil {
		t.Fatal(err)
	}
	_ = p.engine.Close()
	var got []uint64
	var records []Record
	var err error
	for err == nil {
		records, err = p.s.Next(context.Background(), records[:0])
		for _, r := range records {
			got = append(got, r.Seq)
		}
	}
	lost := p.s.Lost()
	if !errors.Is(err, io.EOF) || !slices.Equal(got, []uint64{0, 1, 2, 4, 6}) || !slices.Equal(lost, []uint64{3, 5}) {
		t.Errorf("read %v, lost %v: %v", got, p.s.Lost(), err)
	}
	if p.s.Producer().Closing {
		t.Error("a death looks like a clean end")
	}
	for _, h := range held {
		h.Abort()
	}
}
