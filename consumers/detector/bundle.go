package detector

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/goccy/go-yaml"

	"sonde/safetensors"
)

// Files of a bundle.
const (
	manifestFile    = "detector.yaml"
	weightsFile     = "weights.safetensors"
	testVectorsFile = "testvectors.arrow"
	maxBundleFile   = 64 << 20 // bytes of weights or test vectors
)

// Names of the tensors in weightsFile: F32, [width] each, but for the bias, [1].
const (
	tensorWeight = "weight"
	tensorBias   = "bias"
	tensorMean   = "mean"  // optional, with scale: the row is (row - mean) / scale
	tensorScale  = "scale" // before the product
)

// Bundle is a detector that passed its self-test on this machine.
type Bundle struct {
	Dir      string
	Manifest Manifest
	Digest   string  // SHA-256 of detector.yaml in hex; the manifest holds the digests of the other files
	Tested   int     // rows of the self-test
	Worst    float64 // largest deviation in the self-test, as a share of what is tolerated
	Probe    Probe   // with mean and scale folded in
}

// Load reads a bundle, checks every part of it, and runs its self-test. Each error
// is one sentence that names the file.
func Load(dir string) (*Bundle, error) {
	text, err := readFile(dir, manifestFile, maxManifestBytes)
	if err != nil {
		return nil, err
	}
	b := &Bundle{Dir: dir, Digest: digest(text)}
	if b.Manifest, err = parseManifest(text); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, manifestFile), err)
	}
	weights, err := readDigested(dir, weightsFile, b.Manifest.Files.Weights)
	if err != nil {
		return nil, err
	}
	if err := b.loadWeights(weights); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, weightsFile), err)
	}
	vectors, err := readDigested(dir, testVectorsFile, b.Manifest.Files.TestVectors)
	if err != nil {
		return nil, err
	}
	rows, err := decodeTestRows(vectors, b.Manifest.Binding)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, testVectorsFile), err)
	}
	if err := b.selfTest(rows); err != nil {
		return nil, fmt.Errorf("bundle %s fails its self-test on this machine: %w; nothing is scored with it", dir, err)
	}
	return b, nil
}

func readFile(dir, name string, most int64) ([]byte, error) {
	path := filepath.Join(dir, name)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is no detector bundle: it has no %s; make one with sonde detect train", dir, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	if int64(len(text)) > most {
		return nil, fmt.Errorf("read %s: it has more than %d bytes; is it the right file?", path, most)
	}
	return text, nil
}

func readDigested(dir, name, want string) ([]byte, error) {
	data, err := readFile(dir, name, maxBundleFile)
	if err != nil {
		return nil, err
	}
	if got := digest(data); got != want {
		return nil, fmt.Errorf("read %s: its SHA-256 is %s and %s says %q: the bundle is damaged or was changed",
			filepath.Join(dir, name), got, manifestFile, clip(want))
	}
	return data, nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// loadWeights reads the tensors and folds mean and scale into them, so that a token
// costs one dot product.
func (b *Bundle) loadWeights(data []byte) error {
	f, err := safetensors.Read(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return err
	}
	width := b.Manifest.Binding.Width
	weight, err := floats(f, tensorWeight, width)
	if err != nil {
		return err
	}
	bias, err := floats(f, tensorBias, 1)
	if err != nil {
		return err
	}
	folded := float64(bias[0])
	if slices.Contains(f.Names(), tensorMean) || slices.Contains(f.Names(), tensorScale) {
		mean, err := floats(f, tensorMean, width)
		if err != nil {
			return err
		}
		scale, err := floats(f, tensorScale, width)
		if err != nil {
			return err
		}
		for i := range weight {
			if scale[i] == 0 {
				return fmt.Errorf("tensor %s is 0 at %d; a feature that never varies has scale 1", tensorScale, i)
			}
			w := float64(weight[i]) / float64(scale[i])
			folded -= w * float64(mean[i])
			weight[i] = float32(w)
		}
	}
	b.Probe = Probe{DType: b.Manifest.Binding.DType, Weight: weight, Bias: float32(folded)}
	return nil
}

// floats reads n finite float32 values.
func floats(f *safetensors.File, name string, n int) ([]float32, error) {
	t, err := f.Tensor(name)
	if err != nil {
		return nil, err
	}
	if t.DType != "F32" || len(t.Shape) != 1 || t.Shape[0] != n || len(t.Data) != 4*n {
		return nil, fmt.Errorf("tensor %s is %s of shape %v; the binding wants F32 of shape [%d]", name, t.DType, t.Shape, n)
	}
	out := make([]float32, n)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(t.Data[4*i:]))
		if v := float64(out[i]); math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("tensor %s holds %v at %d; want finite numbers", name, out[i], i)
		}
	}
	return out, nil
}

// Draft is a detector that was not written yet. Rows are consecutive rows of one
// request, in the order of their positions, for the self-test.
type Draft struct {
	Manifest Manifest // Format and Files are set by Write
	Probe    Probe
	Rows     [][]byte
}

// Write makes a bundle of a draft in a new folder and loads it again. The same draft
// gives the same bytes.
func Write(dir string, d Draft) (*Bundle, error) {
	if err := Vacant(dir); err != nil {
		return nil, err
	}
	part := filepath.Clean(dir) + ".part"
	if err := os.RemoveAll(part); err != nil {
		return nil, fmt.Errorf("write bundle: %w", err)
	}
	if err := os.MkdirAll(part, 0o755); err != nil {
		return nil, fmt.Errorf("write bundle: %w", err)
	}
	weights, err := encodeWeights(d)
	if err != nil {
		return nil, fmt.Errorf("write bundle: %w", err)
	}
	vectors, err := encodeTestRows(d)
	if err != nil {
		return nil, fmt.Errorf("write bundle: %w", err)
	}
	m := d.Manifest
	m.Format, m.Files = manifestFormat, Files{Weights: digest(weights), TestVectors: digest(vectors)}
	text, err := yaml.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write bundle: encode %s: %w", manifestFile, err)
	}
	for name, data := range map[string][]byte{weightsFile: weights, testVectorsFile: vectors, manifestFile: text} {
		if err := os.WriteFile(filepath.Join(part, name), data, 0o644); err != nil {
			return nil, fmt.Errorf("write bundle: %w", err)
		}
	}
	if _, err := Load(part); err != nil {
		return nil, fmt.Errorf("check the new bundle: %w", err)
	}
	if err := os.Rename(part, dir); err != nil {
		return nil, fmt.Errorf("write bundle: %w", err)
	}
	return Load(dir)
}

// Vacant reports why a bundle cannot be written to dir: something is there.
func Vacant(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(entries) == 0:
		return nil
	case err != nil:
		return fmt.Errorf("write bundle: %w", err)
	}
	return fmt.Errorf("write bundle: %s is not empty; remove it or choose another folder", dir)
}

func encodeWeights(d Draft) ([]byte, error) {
	var out bytes.Buffer
	err := safetensors.Write(&out, []safetensors.Named{tensor(tensorBias, []float32{d.Probe.Bias}),
		tensor(tensorWeight, d.Probe.Weight)}, nil)
	return out.Bytes(), err
}

func tensor(name string, values []float32) safetensors.Named {
	data := make([]byte, 0, 4*len(values))
	for _, v := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return safetensors.Named{Name: name, Tensor: safetensors.Tensor{DType: "F32", Shape: []int{len(values)}, Data: data}}
}
