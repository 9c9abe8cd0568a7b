package detector

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sonde/safetensors"
)

// f32Row encodes a row.
func f32Row(values ...float32) []byte {
	var out []byte
	for _, v := range values {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
	}
	return out
}

// draft is a detector whose token score is the first of four elements.
func draft() Draft {
	return Draft{
		Manifest: Manifest{Name: "german", Version: "1", Description: "Is this German?",
			Binding: Binding{ModelWeights: "sha256:abc", Quantisation: None, Adapter: None, Hook: "resid_post", Layer: 2,
				DType: "f32", Width: 4, Phase: PhaseAll},
			Feature: Feature{Kind: "linear"}, Aggregation: Aggregation{Kind: "mean", Window: 2},
			Levels: []Level{{Name: LevelWarn, Threshold: 0.5, FalseAlarmRate: 0.1},
				{Name: LevelStop, Threshold: 2.25, FalseAlarmRate: 0.01}},
			Limits: Limits{MaxStopRate: 0.5}},
		Probe: Probe{DType: "f32", Weight: []float32{1, 0, 0, 0}}, Rows: [][]byte{f32Row(1, 2, 3, 4), f32Row(-1, 5, 0, 1),
			f32Row(0.3, 0, 0, 0)}}
}

func write(t testing.TB, d Draft) *Bundle {
	t.Helper()
	b, err := Write(filepath.Join(t.TempDir(), "bundle"), d)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBundleReadsAsItWasWritten(t *testing.T) {
	d := draft()
	d.Probe.Bias = 0.125
	d.Manifest.Levels[1].Threshold = 1.0 / 3
	d.Manifest.Levels[0].Threshold = float32(math.Nextafter32(0.1, 1))
	d.Manifest.Levels[1].Measured = Measured{CleanRequests: 60, FalseAlarms: 1, UpperBound95: 0.0766, Positives: 30,
		Detected: 29}
	d.Manifest.Training = &Training{LakeVersion: 7, Stream: "x", Positive: "language=de", TokenAccuracy: 0.97}
	b := write(t, d)
	m := b.Manifest
	if m.Levels[0] != d.Manifest.Levels[0] || m.Levels[1] != d.Manifest.Levels[1] || *m.Training != *d.Manifest.Training ||
		m.Binding != d.Manifest.Binding || m.Aggregation != d.Manifest.Aggregation || m.Limits != d.Manifest.Limits {
		t.Errorf("read %+v, wrote %+v", m, d.Manifest)
	}
	if b.Probe.Bias != d.Probe.Bias || b.Probe.Weight[0] != 1 || b.Tested != 3 || len(b.Digest) != 64 {
		t.Errorf("bias %v weights %v tested %d digest %q", b.Probe.Bias, b.Probe.Weight, b.Tested, b.Digest)
	}
	if again := write(t, d); again.Digest != b.Digest {
		t.Errorf("the same draft has the digests %s and %s", b.Digest, again.Digest)
	}
	d.Probe.Bias = 0.25
	if other := write(t, d); other.Digest == b.Digest {
		t.Error("another bias has the same digest")
	}
}

func TestMeanAndScaleAreFoldedIn(t *testing.T) {
	b := write(t, draft())
	weights := safetensorsFile(t, map[string][]float32{"weight": {1, 2, 3, 4}, "bias": {0.5}, "mean": {1, 1, 2, 0},
		"scale": {2, 1, 0.5, 4}})
	if err := b.loadWeights(weights); err != nil {
		t.Fatal(err)
	}
	// (3-1)/2*1 + (4-1)/1*2 + (5-2)/0.5*3 + (8-0)/4*4 + 0.5
	if got := b.Probe.Score(f32Row(3, 4, 5, 8)); got != 1+6+18+8+0.5 {
		t.Errorf("score is %v", got)
	}
}

func safetensorsFile(t *testing.T, tensors map[string][]float32) []byte {
	t.Helper()
	var named []safetensors.Named
	for _, name := range []string{"bias", "mean", "scale", "weight"} {
		if values, ok := tensors[name]; ok {
			named = append(named, tensor(name, values))
		}
	}
	var out bytes.Buffer
	if err := safetensors.Write(&out, named, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// replace changes the manifest of a bundle.
func replace(from, to string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		path := filepath.Join(dir, manifestFile)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), from) {
			t.Fatalf("manifest has no %q:\n%s", from, text)
		}
		if err := os.WriteFile(path, []byte(strings.Replace(string(text), from, to, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// swap puts other bytes in a file and their digest in the manifest, so that only the
// content itself can tell.
func swap(t *testing.T, dir, name, key string, data []byte) {
	t.Helper()
	path := filepath.Join(dir, manifestFile)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(key+`: \S+`).ReplaceAll(text, []byte(key+": "+digest(data)))
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func swapWeights(tensors map[string][]float32) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		swap(t, dir, weightsFile, "weights_sha256", safetensorsFile(t, tensors))
	}
}

func swapVectors(change func(d *Draft)) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		d := draft()
		change(&d)
		data, err := encodeTestRows(d)
		if err != nil {
			t.Fatal(err)
		}
		swap(t, dir, testVectorsFile, "test_vectors_sha256", data)
	}
}

func remove(name string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func flip(name string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		path := filepath.Join(dir, name)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamagedBundlesAreRefusedInOneSentence(t *testing.T) {
	nan := float32(math.NaN())
	for name, c := range map[string]struct {
		damage func(t *testing.T, dir string)
		want   string
	}{
		"no manifest":        {remove(manifestFile), "is no detector bundle"},
		"no weights":         {remove(weightsFile), "has no weights.safetensors"},
		"no test vectors":    {remove(testVectorsFile), "has no testvectors.arrow"},
		"flipped weights":    {flip(weightsFile), "damaged or was changed"},
		"flipped vectors":    {flip(testVectorsFile), "damaged or was changed"},
		"empty manifest":     {func(t *testing.T, dir string) { writeManifest(t, dir, "") }, "it is empty"},
		"no yaml":            {func(t *testing.T, dir string) { writeManifest(t, dir, "\t{[") }, "line 1"},
		"binary manifest":    {func(t *testing.T, dir string) { writeManifest(t, dir, "\x00\xff\x01") }, manifestFile},
		"list for a map":     {replace("limits:\n  max_stop_rate: 0.5", "limits: [1, 2]"), "line"},
		"unknown key":        {replace("version: ", "verzion: "), "unknown field"},
		"another format":     {replace("format: 1", "format: 2"), "format is 2"},
		"upper case name":    {replace("name: german", "name: German"), `name "German"`},
		"unknown feature":    {replace("kind: linear", "kind: mlp"), "want linear"},
		"unknown aggregate":  {replace("kind: mean", "kind: median"), "want ema, mean"},
		"window of 0":        {replace("window: 2", "window: 0"), "window is 0"},
		"unknown level":      {replace("name: warn", "name: alarm"), "want warn, escalate or stop"},
		"level twice":        {replace("name: warn", "name: stop"), "wrong place"},
		"falling thresholds": {replace("threshold: 2.25", "threshold: 0.25"), "not below the level before"},
		"threshold NaN":      {replace("threshold: 2.25", "threshold: .nan"), "want a number"},
		"stop rate 0":        {replace("max_stop_rate: 0.5", "max_stop_rate: 0"), "max_stop_rate"},
		"unknown dtype":      {replace("dtype: f32", "dtype: i32"), "cannot be scored"},
		"unknown phase":      {replace("phase: all", "phase: some"), "want all, prefill or decode"},
		"no digest bound":    {replace("model_weights: sha256:abc", `model_weights: ""`), "model_weights is empty"},
		"huge width":         {replace("width: 4", "width: 999999999"), "width 999999999"},
		"other width":        {replace("width: 4", "width: 5"), "shape [5]"},
		"weights NaN":        {swapWeights(map[string][]float32{"weight": {nan, 0, 0, 0}, "bias": {0}}), "want finite"},
		"no bias":            {swapWeights(map[string][]float32{"weight": {1, 0, 0, 0}}), "bias"},
		"mean alone": {swapWeights(map[string][]float32{"weight": {1, 0, 0, 0}, "bias": {0}, "mean": {0, 0, 0, 0}}),
			"scale"},
		"scale 0": {swapWeights(map[string][]float32{"weight": {1, 0, 0, 0}, "bias": {0}, "mean": {0, 0, 0, 0},
			"scale": {1, 0, 1, 1}}), "is 0 at 1"},
		"other weights": {swapWeights(map[string][]float32{"weight": {1.01, 0, 0, 0}, "bias": {0}}), "fails its self-test"},
		"other bias":    {swapWeights(map[string][]float32{"weight": {1, 0, 0, 0}, "bias": {0.01}}), "fails its self-test"},
		"vectors of another width": {swapVectors(func(d *Draft) {
			d.Manifest.Binding.Width, d.Probe.Weight, d.Rows = 1, d.Probe.Weight[:1], [][]byte{f32Row(1)}
		}), "column 0 is"},
		"no test rows": {swapVectors(func(d *Draft) { d.Rows = nil }), "it has 0 rows"},
		"test row of infinities": {swapVectors(func(d *Draft) { d.Rows[0] = f32Row(float32(math.Inf(1)), 0, 0, 0) }),
			"self-test"},
		"another aggregation": {swapVectors(func(d *Draft) { d.Manifest.Aggregation.Window = 3 }),
			"aggregate of test row"},
		"no arrow": {func(t *testing.T, dir string) {
			swap(t, dir, testVectorsFile, "test_vectors_sha256", []byte("no arrow file at all"))
		}, "Arrow file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, draft()).Dir
			c.damage(t, dir)
			_, err := Load(dir)
			if err == nil {
				t.Fatal("loaded")
			}
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("want one line with %q, got %q", c.want, err)
			}
		})
	}
}

func writeManifest(t *testing.T, dir, text string) {
	if err := os.WriteFile(filepath.Join(dir, manifestFile), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A torn or overwritten file whose digest was adjusted must never end the process.
func TestTornTestVectorsAreErrors(t *testing.T) {
	d := draft()
	data, err := encodeTestRows(d)
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		if rows, err := decodeTestRows(data[:n], d.Manifest.Binding); err == nil && len(rows) != len(d.Rows) {
			t.Fatalf("%d of %d bytes: %d rows and no error", n, len(data), len(rows))
		}
	}
}

func TestBundlesAreNotOverwritten(t *testing.T) {
	b := write(t, draft())
	if _, err := Write(b.Dir, draft()); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("want a refusal, got %v", err)
	}
}

func TestElementsWidenExactly(t *testing.T) {
	for bits, want := range map[uint16]float64{0: 0, 1: 0x1p-24, 0x03ff: 1023 * 0x1p-24, 0x0400: 0x1p-14, 0x3c00: 1,
		0x7bff: 65504, 0xc000: -2, 0x7c00: math.Inf(1), 0xfc00: math.Inf(-1), 0x8001: -0x1p-24} {
		row := binary.LittleEndian.AppendUint16(nil, bits)
		if got := Elements(make([]float64, 1), "f16", row)[0]; got != want {
			t.Errorf("f16 %#04x is %v, want %v", bits, got, want)
		}
	}
	if got := Elements(make([]float64, 1), "f16", []byte{1, 0x7e})[0]; !math.IsNaN(got) {
		t.Errorf("f16 NaN is %v", got)
	}
	if got := Elements(make([]float64, 1), "bf16", []byte{0x80, 0xbf})[0]; got != -1 {
		t.Errorf("bf16 0xbf80 is %v, want -1", got)
	}
}
