package training

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"sonde/consumers/detector"
	"sonde/lakehouse"
)

// fakeLake is a dataset in memory.
type fakeLake struct {
	requests []lakehouse.Request
	vectors  []lakehouse.Vector
}

func (f *fakeLake) Version() uint64 { return 42 }

func (f *fakeLake) Requests(_ context.Context, _ lakehouse.Query, each func(*lakehouse.Request) error) error {
	for i := range f.requests {
		if err := each(&f.requests[i]); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeLake) Vectors(_ context.Context, q lakehouse.Query, each func(*lakehouse.Vector) error) error {
	for i := range f.vectors {
		v := f.vectors[i] // a copy, like the reader's one buffer
		if v.Hook == q.Hook && v.Layer == *q.Layer {
			if err := each(&v); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	testWidth  = 12
	testPrompt = 4
)

// world draws requests whose tokens are normal around +shift along a random direction
// for German ones, around -shift for the others, with deviation 1. The best any probe
// can do on one token is Phi(shift).
type world struct {
	random    *rand.Rand
	direction [testWidth]float64
	offset    [testWidth]float64 // features neither centred nor of one scale
	scale     [testWidth]float64
	shift     float64
}

func newWorld(seed uint64, shift float64) *world {
	w := &world{random: rand.New(rand.NewPCG(seed, 0)), shift: shift}
	norm := 0.0
	for k := range w.direction {
		w.direction[k] = w.random.NormFloat64()
		norm += w.direction[k] * w.direction[k]
		w.offset[k], w.scale[k] = 10*w.random.NormFloat64(), math.Exp(2*w.random.NormFloat64())
	}
	for k := range w.direction {
		w.direction[k] /= math.Sqrt(norm)
	}
	return w
}

// row draws one token.
func (w *world) row(german bool) []byte {
	shift := -w.shift
	if german {
		shift = w.shift
	}
	var out []byte
	for k := range testWidth {
		x := w.offset[k] + w.scale[k]*(w.random.NormFloat64()+shift*w.direction[k])
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(float32(x)))
	}
	return out
}

func language(german bool) map[string]string {
	if german {
		return map[string]string{"language": "de"}
	}
	return map[string]string{"language": "en"}
}

// add puts a request with so many generated tokens into a lake.
func (w *world) add(f *fakeLake, number uint64, id string, german bool, tokens int32) {
	r := lakehouse.Request{Number: number, Request: id, Labels: language(german), PromptTokens: testPrompt,
		GeneratedTokens: tokens}
	r.Epoch = 9
	f.requests = append(f.requests, r)
	for position := range testPrompt + tokens {
		v := lakehouse.Vector{DType: "f32", Shape: []int{testWidth}, Raw: w.row(german && position >= testPrompt)}
		v.Epoch, v.WeightsDigest, v.Hook, v.Layer = 9, "sha256:abc", "resid_post", 2
		v.Number, v.Request, v.Position = number, id, position
		if position >= testPrompt {
			v.Phase = 1
		}
		f.vectors = append(f.vectors, v)
	}
}

// lake draws a dataset.
func (w *world) lake(german, other int, tokens int32) *fakeLake {
	f := &fakeLake{}
	for i := range german + other {
		w.add(f, uint64(i+1), fmt.Sprint("request-", i), i < german, tokens)
	}
	return f
}

func options(t *testing.T) Options {
	return Options{Stream: "stream", Hook: "resid_post", Layer: 2, Phase: detector.PhaseDecode,
		Positive: Label{"language", "de"}, Name: "german", Version: "1", Description: "Is this German?",
		Aggregation: detector.Aggregation{Kind: "ema", HalfLife: 4}, HoldOut: 0.25, FalseAlarm: 0.05,
		Out: filepath.Join(t.TempDir(), "bundle")}
}

func train(t *testing.T, lake Lake, change func(o *Options)) *Result {
	t.Helper()
	o := options(t)
	if change != nil {
		change(&o)
	}
	r, err := Run(context.Background(), lake, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
