package schema

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// touch reads every row, as a consumer does.
func touch(b *Batch) {
	for _, r := range allRows(b) {
		_ = r
	}
	_ = Subject(b.Header)
	_ = MessageID(b.Header)
	if k, err := ParseChainKey(b.Header.Chain().String()); err != nil || k != b.Header.Chain() {
		panic("a chain key does not survive its text")
	}
}

func FuzzDecode(f *testing.F) {
	for _, msg := range goldenMessages(f) {
		f.Add(msg)
		f.Add(msg[:len(msg)/2])
	}
	f.Fuzz(func(_ *testing.T, msg []byte) {
		if b, err := Decode(msg); err == nil {
			touch(b)
		}
	})
}

func FuzzDecodeHeader(f *testing.F) {
	for _, msg := range goldenMessages(f) {
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		h, err := DecodeHeader(msg)
		if err != nil {
			return
		}
		if columnsOf[h.Kind] == nil || len(h.Spans) > MaxRows {
			t.Fatalf("accepted header %+v", h)
		}
	})
}

func TestNoChangedByteMakesDecodingPanic(t *testing.T) {
	seed := uint64(20261124)
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for name, golden := range goldenMessages(t) {
		refused := 0
		for range 3000 {
			msg := append([]byte(nil), golden...)
			for range 1 + rng.IntN(3) {
				msg[rng.IntN(len(msg))] = byte(rng.Uint32())
			}
			if b, err := Decode(msg); err == nil {
				touch(b)
			} else {
				refused++
			}
		}
		if refused == 0 {
			t.Errorf("%s: 3000 damaged messages were all accepted", name)
		}
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	for name, golden := range goldenMessages(t) {
		for n := range len(golden) - len(endOfStream) {
			if _, err := Decode(golden[:n]); err == nil {
				t.Fatalf("%s cut to %d of %d bytes was accepted", name, n, len(golden))
			}
		}
	}
}

func TestBoundsAreRefusedWithASentence(t *testing.T) {
	if _, err := Decode(make([]byte, MaxMessageBytes+1)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a message above the bound gave %v", err)
	}
	h := testHeader()
	h.Shape = []int{1 << 20}
	e, err := NewVectorEncoder(h)
	if err != nil {
		t.Fatal(err)
	}
	vec := make([]byte, 2<<20)
	for i := range 17 {
		if err := e.Append(VectorRow{Seq: uint64(i), Vec: vec}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := e.Encode(Cursor{}); err == nil || !strings.Contains(err.Error(), "close batches earlier") {
		t.Errorf("34 MiB of rows gave %v", err)
	}
	e.Reset()
	if _, _, err := e.Encode(Cursor{}); err == nil {
		t.Error("a message without rows was written")
	}
	if err := e.Append(VectorRow{Vec: make([]byte, 3)}); err == nil {
		t.Error("a row of the wrong size was taken")
	}
	for _, bad := range []Header{{DType: "f64"}, {DType: "f32", Shape: []int{0}}, {DType: "f32", Shape: []int{1 << 30}},
		{DType: "f32", Tenant: strings.Repeat("x", MaxStringBytes+1)}} {
		if _, err := NewVectorEncoder(bad); err == nil {
			t.Errorf("header %.60v was taken", bad)
		}
	}
}

func TestNamesSurviveSubjectsAndChains(t *testing.T) {
	for _, name := range []string{"", "_", "-", "a.b", "a b*>", "=5F", "grüße", "x_y", "\x00\xff"} {
		token := EscapeToken(name)
		if strings.ContainsAny(token, ".*> \x00") || token == "" {
			t.Errorf("%q becomes the token %q", name, token)
		}
		back, err := unescape(token)
		if err != nil || back != name {
			t.Errorf("%q becomes %q and then %q, %v", name, token, back, err)
		}
	}
	h := testHeader()
	if got, want := Subject(h), "sonde.v1.acme=20corp.engine=2E0.1.vectors.resid_post.3"; got != want {
		t.Errorf("subject %s; want %s", got, want)
	}
	h.Hook, h.Layer, h.Tenant = Hookless, -1, ""
	if got, want := Subject(h), "sonde.v1._.engine=2E0.1.vectors.-._"; got != want {
		t.Errorf("subject %s; want %s", got, want)
	}
	for _, bad := range []string{"", "x", "00.a.b.c.d.e", "000000000000000g.a.b.c.1.0", "0000000000000001.a.=Z.c.1.0",
		"0000000000000001.a.b.c.x.0"} {
		if _, err := ParseChainKey(bad); err == nil {
			t.Errorf("chain key %q was taken", bad)
		}
	}
}

func TestMessageIDsFollowTheRows(t *testing.T) {
	h := testHeader()
	h.Spans = []Span{{Seq: 3, First: 0, Rows: 4}, {Seq: 5, First: 1, Rows: 2}}
	id := MessageID(h)
	h.Prev = Cursor{}
	if MessageID(h) != id {
		t.Error("the same rows with another prev have another id: a republication would not be recognised")
	}
	h.Spans[0].Rows--
	if MessageID(h) == id {
		t.Error("other rows between the same cursors have the same id: they would be lost as duplicates")
	}
}

func TestAMessageCostsNoMemoryPerToken(t *testing.T) {
	e, err := NewVectorEncoder(testHeader())
	if err != nil {
		t.Fatal(err)
	}
	rows := testVectors(512, 16)
	dst := make([]byte, 0, 1<<20)
	cycle := func() {
		for i := range rows {
			if err := e.Append(rows[i]); err != nil {
				t.Fatal(err)
			}
		}
		if dst, _, err = e.EncodeTo(dst, Cursor{}); err != nil {
			t.Fatal(err)
		}
		e.Reset()
	}
	cycle()
	if n := testing.AllocsPerRun(20, cycle); n > 2 {
		t.Errorf("%.0f allocations for a message of %d rows; want none", n, len(rows))
	}
}

// fixedFile is an Arrow file as other programs write it.
func fixedFile(t testing.TB) (file []byte, want []arrow.Field) {
	t.Helper()
	want = []arrow.Field{{Name: "vec", Type: &arrow.FixedSizeBinaryType{ByteWidth: 6}},
		{Name: "score", Type: arrow.PrimitiveTypes.Float32}}
	columns := arrow.NewSchema(want, nil)
	build := array.NewRecordBuilder(memory.DefaultAllocator, columns)
	defer build.Release()
	for i := range 3 {
		build.Field(0).(*array.FixedSizeBinaryBuilder).Append([]byte{byte(i), 1, 2, 3, 4, 5})
		build.Field(1).(*array.Float32Builder).Append(float32(i))
	}
	batch := build.NewRecordBatch()
	defer batch.Release()
	var out bytes.Buffer
	w, err := ipc.NewFileWriter(&out, ipc.WithSchema(columns))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Write(batch), w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), want
}

func TestFixedColumnsComeOutOfAFileOrNothingDoes(t *testing.T) {
	file, want := fixedFile(t)
	rows, columns, err := DecodeFixedFile(file, want)
	if err != nil || rows != 3 || len(columns) != 2 || !bytes.Equal(columns[0][6:12], []byte{1, 1, 2, 3, 4, 5}) ||
		!bytes.Equal(columns[1], []byte{0, 0, 0, 0, 0, 0, 0x80, 0x3f, 0, 0, 0, 0x40}) {
		t.Fatalf("%d rows of %v, %v", rows, columns, err)
	}
	other := []arrow.Field{want[0], {Name: "score", Type: arrow.PrimitiveTypes.Int32}}
	for name, c := range map[string]struct {
		file []byte
		want []arrow.Field
		says string
	}{
		"nothing":        {nil, want, "does not begin"},
		"a stream":       {file[8:], want, "does not begin"},
		"half a file":    {file[:len(file)/2], want, ""},
		"another type":   {file, other, "score"},
		"another column": {file, append(want, want[0]), "2 columns; 3 expected"},
	} {
		if rows, _, err := DecodeFixedFile(c.file, c.want); err == nil {
			t.Errorf("%s: %d rows", name, rows)
		} else if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want something with %q", name, err, c.says)
		}
	}
	for at := range file {
		for _, to := range []byte{0, 1, 0x7f, 0xff} {
			damaged := bytes.Clone(file)
			damaged[at] = to
			if rows, columns, err := DecodeFixedFile(damaged, want); err == nil &&
				(len(columns[0]) != 6*rows || len(columns[1]) != 4*rows) {
				t.Errorf("byte %d as %#x: %d rows with columns of %d and %d bytes", at, to, rows, len(columns[0]),
					len(columns[1]))
			}
		}
	}
}

func FuzzFixedFile(f *testing.F) {
	file, want := fixedFile(f)
	f.Add(file)
	f.Add(file[:len(file)-20])
	f.Fuzz(func(t *testing.T, file []byte) {
		rows, columns, err := DecodeFixedFile(file, want)
		if err == nil && (len(columns[0]) != 6*rows || len(columns[1]) != 4*rows || len(columns[0]) > len(file)) {
			t.Fatalf("%d rows with columns of %d and %d bytes", rows, len(columns[0]), len(columns[1]))
		}
	})
}
