package safetensors

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// raw makes a file of a header and data of that many bytes.
func raw(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, data)...)
}

func read(b []byte) (*File, error) { return Read(bytes.NewReader(b), int64(len(b))) }

func randomTensors(r *rand.Rand) []Named {
	dtypes := []string{"F32", "BF16", "U8", "I64", "F16", "BOOL", "F8_E4M3"}
	out := make([]Named, r.IntN(12))
	for i := range out {
		t := &out[i]
		t.Name = strings.Repeat("läyer.", r.IntN(4)) + string(rune('a'+i))
		t.DType = dtypes[r.IntN(len(dtypes))]
		size := int(sizes[t.DType])
		t.Shape = []int{}
		for range r.IntN(4) {
			d := r.IntN(6)
			t.Shape = append(t.Shape, d)
			size *= d
		}
		t.Data = make([]byte, size)
		for j := range t.Data {
			t.Data[j] = byte(r.Uint32())
		}
	}
	return out
}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		tensors := randomTensors(r)
		metadata := map[string]string{"format": "pt", "quote\"": "<|x|>\n"}
		if r.IntN(3) == 0 {
			metadata = nil
		}
		var b bytes.Buffer
		if err := Write(&b, tensors, metadata); err != nil {
			t.Fatal(err)
		}
		f, err := read(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(f.Metadata(), metadata) || len(f.Names()) != len(tensors) {
			t.Fatalf("metadata %v and %d names of %v and %d", f.Metadata(), len(f.Names()), metadata, len(tensors))
		}
		for _, want := range tensors {
			got, err := f.Tensor(want.Name)
			if err != nil {
				t.Fatal(err)
			}
			if got.DType != want.DType || !slices.Equal(got.Shape, want.Shape) || !bytes.Equal(got.Data, want.Data) {
				t.Fatalf("tensor %q came back as %s %v", want.Name, got.DType, got.Shape)
			}
			if e := f.tensors[want.Name]; (f.start+e.begin)%sizes[want.DType] != 0 {
				t.Fatalf("tensor %q of %s lies at byte %d", want.Name, want.DType, f.start+e.begin)
			}
		}
	}
}

func TestTheModelOfAnotherProgramIsRead(t *testing.T) {
	f, err := Open("../models/trilingual/model.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Metadata()["format"] != "pt" {
		t.Errorf("metadata %v", f.Metadata())
	}
	w, err := f.Tensor("model.layers.3.mlp.down_proj.weight")
	if err != nil {
		t.Fatal(err)
	}
	if w.DType != "BF16" || !slices.Equal(w.Shape, []int{256, 704}) || len(w.Data) != 2*256*704 {
		t.Errorf("tensor %s %v of %d bytes", w.DType, w.Shape, len(w.Data))
	}
}

var hostile = map[string]struct {
	file []byte
	want string // part of the error
}{
	"nothing":         {nil, "0 bytes"},
	"no header":       {[]byte("1234567"), "7 bytes"},
	"huge length":     {binary.LittleEndian.AppendUint64(nil, 1<<63), "another format"},
	"length past end": {append(binary.LittleEndian.AppendUint64(nil, 100), '{'), "cut short"},
	"empty header":    {raw("", 0), "brace"},
	"not JSON":        {raw("{x", 0), "JSON"},
	"array":           {raw("[]", 0), "brace"},
	"cut JSON":        {raw(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`, 0), "JSON"},
	"more JSON":       {raw("{} {}", 0), "follows"},
	"unknown field":   {raw(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}}`, 0), "unknown field"},
	"unknown type":    {raw(`{"a":{"dtype":"F7","shape":[1],"data_offsets":[0,1]}}`, 1), `"F7"`},
	"no shape":        {raw(`{"a":{"dtype":"U8","shape":null,"data_offsets":[0,1]}}`, 1), "lacks a shape"},
	"one offset":      {raw(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}`, 1), "two data_offsets"},
	"three offsets":   {raw(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}`, 1), "two data_offsets"},
	"null tensor":     {raw(`{"a":null}`, 0), "lacks a shape"},
	"negative":        {raw(`{"a":{"dtype":"U8","shape":[0,-1],"data_offsets":[0,0]}}`, 0), "negative"},
	"fraction":        {raw(`{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}`, 1), "1.5"},
	"overflow": {raw(`{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}`, 0),
		"more than a file"},
	"too many dimensions": {raw(`{"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}`, 1),
		"17 dimensions"},
	"size of another shape": {raw(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`, 4), "8 bytes of F32"},
	"backwards":             {raw(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[4,0]}}`, 4), "bytes 4 to 0"},
	"before the data":       {raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}}`, 4), "bytes -4"},
	"past the data":         {raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}`, 3), "4 bytes of 3"},
	"unclaimed data":        {raw(`{}`, 3), "0 bytes of 3"},
	"overlap": {raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}`, 6),
		"overlap"},
	"hole": {raw(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}`, 3),
		"hole"},
	"twice": {raw(`{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`, 0),
		"twice"},
	"metadata twice":     {raw(`{"__metadata__":{},"__metadata__":{}}`, 0), "twice"},
	"metadata of number": {raw(`{"__metadata__":{"a":1}}`, 0), "map of texts"},
	"deep nesting":       {raw(`{"a":`+strings.Repeat("[", 100000), 0), "a"},
}

func TestHostileHeadersAreErrorsThatSayWhy(t *testing.T) {
	for name, c := range hostile {
		_, err := read(c.file)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v does not say %q", name, err, c.want)
		}
	}
}

func TestATensorThatIsNotThereAndAFileThatShrankAreErrors(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, []Named{{"a", Tensor{"U8", []int{4000}, make([]byte, 4000)}}}, nil); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.safetensors")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Tensor("b"); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name the file", err)
	}
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Tensor("a"); err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("error %v of a file that became shorter", err)
	}
}

func TestWriteRefusesWhatItCouldNotReadBack(t *testing.T) {
	ok := Tensor{"U8", []int{1}, []byte{1}}
	for name, tensors := range map[string][]Named{
		"taken":           {{"a", ok}, {"a", ok}},
		"__metadata__":    {{"__metadata__", ok}},
		"UTF-8":           {{"\xff", ok}},
		"2 bytes for":     {{"a", Tensor{"U8", []int{1}, []byte{1, 2}}}},
		`"F7"`:            {{"a", Tensor{"F7", []int{1}, []byte{1}}}},
		"negative":        {{"a", Tensor{"U8", []int{-1}, nil}}},
		"17 dimensions":   {{"a", Tensor{"U8", make([]int, 17), nil}}},
		"1 bytes for F32": {{"a", Tensor{"F32", nil, []byte{1}}}},
	} {
		err := Write(&bytes.Buffer{}, tensors, nil)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v does not say %q", err, name)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, c := range hostile {
		if len(c.file) < 1000 {
			f.Add(c.file)
		}
	}
	var b bytes.Buffer
	if err := Write(&b, []Named{{"a", Tensor{"F32", []int{2, 1}, make([]byte, 8)}}, {"b", Tensor{"U8", nil, []byte{7}}}},
		map[string]string{"k": "v"}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := read(b)
		if err != nil {
			return
		}
		total := 0
		for _, name := range file.Names() {
			tensor, err := file.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			total += len(tensor.Data)
		}
		if int64(total)+file.start != int64(len(b)) {
			t.Fatalf("tensors hold %d bytes of a file of %d", total, len(b))
		}
	})
}
