package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"

	"sonde/engine/bpe"
	"sonde/engine/llama"
	"sonde/engine/model"
	"sonde/schema"
)

// token is one token of a corpus: what its rows at all hooks have in common.
type token struct {
	step     int
	row      int // in its step
	sequence int
	position int
	phase    uint8
}

// corpus is what some steps of an engine captured: a row of elements bf16 for each
// token at each chain.
type corpus struct {
	name     string
	elements int
	chains   []chainName
	tokens   []token
	data     [][]byte // by chain: the rows of all tokens
}

type chainName struct {
	hook  string
	layer int
}

func (c *corpus) rowBytes() int { return 2 * c.elements }

func (c *corpus) bytes() int { return len(c.chains) * len(c.tokens) * c.rowBytes() }

// requestName is the id of a request, of equal length for all.
func requestName(sequence int) string { return fmt.Sprintf("req-%08d", sequence) }

// randomCorpus has values like those of a residual stream at their most random:
// normal, with a scale of its own for each dimension.
func randomCorpus(bytes int) *corpus {
	const elements, layers, sequences = 2048, 8, 16
	c := &corpus{name: "random values", elements: elements}
	r := rand.New(rand.NewPCG(1, 2))
	scale := make([]float64, elements)
	for i := range scale {
		scale[i] = math.Exp(r.NormFloat64())
	}
	for layer := range layers {
		c.chains = append(c.chains, chainName{"resid_post", layer})
	}
	for n := range max(bytes/(layers*2*elements), sequences) {
		c.tokens = append(c.tokens, token{step: n / sequences, row: n % sequences, sequence: n % sequences,
			position: n / sequences, phase: schema.PhaseDecode})
	}
	c.data = make([][]byte, layers)
	for i := range c.data {
		for range c.tokens {
			for k := range elements {
				c.data[i] = binary.LittleEndian.AppendUint16(c.data[i], bf16(float32(r.NormFloat64()*scale[k])))
			}
		}
	}
	return c
}

// bf16 rounds to nearest, ties to even, as accelerators do.
func bf16(v float32) uint16 {
	b := math.Float32bits(v)
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// Texts that the model goes on writing.
var prompts = []string{
	"The following example shows how to", "This option is used to configure the", "If the file does not exist,",
	"The package manager downloads", "Each process has its own", "A signal handler is called when",
	"L'exemple suivant montre comment", "Cette option permet de configurer", "Si le fichier n'existe pas,",
	"Le gestionnaire de paquets", "Chaque processus possède", "Un gestionnaire de signal est",
	"Das folgende Beispiel zeigt, wie", "Mit dieser Option wird", "Wenn die Datei nicht existiert,",
	"Die Paketverwaltung", "Jeder Prozess hat", "Ein Signal wird gesendet, wenn",
}

// hiddenStates runs the model on prompts of three languages, lets it write on, and
// keeps the residual stream in the middle and at the end of each layer, rounded to
// bf16: our engine computes in float32, engines that serve such models in bf16.
func hiddenStates(dir string, bytes int) (*corpus, error) {
	const sequences, block = 72, 16
	m, err := llama.Load(dir, 2)
	if err != nil {
		return nil, err
	}
	tokenizer, err := bpe.Load(filepath.Join(dir, "tokenizer.json"))
	if err != nil {
		return nil, err
	}
	info := m.Info()
	c := &corpus{name: "hidden states of " + info.Name, elements: info.DModel}
	tap := &keepTap{index: map[int]int{}, corpus: c}
	for i, h := range info.Hooks {
		if h.Name == "resid_mid" || h.Name == "resid_post" {
			tap.index[i] = len(c.chains)
			c.chains = append(c.chains, chainName{h.Name, h.Layer})
		}
	}
	c.data = make([][]byte, len(c.chains))
	steps := max(bytes/(len(c.chains)*c.rowBytes()*sequences), 1) // of one token of each sequence
	steps = min(steps, info.Context/2)
	blocks := (steps+64)/block + 1
	if err := m.Allocate(sequences*blocks, block); err != nil {
		return nil, err
	}
	ranges := make([]model.Range, sequences)
	for i := range ranges {
		ids := tokenizer.Encode(prompts[i%len(prompts)])
		ranges[i] = model.Range{Number: uint64(i), Request: requestName(i), Tokens: ids[:min(len(ids), 60)],
			Logits: make([]float32, info.Vocab)}
		for k := range blocks {
			ranges[i].Blocks = append(ranges[i].Blocks, int32(i*blocks+k))
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	for step := 0; c.bytes() < bytes && step < steps+1; step++ {
		if err := tap.forward(m, ranges, step); err != nil {
			return nil, err
		}
		for i := range ranges {
			ranges[i].Position += len(ranges[i].Tokens)
			ranges[i].Tokens = []int32{choose(r, ranges[i].Logits)}
		}
	}
	return c, nil
}

// choose draws a token at temperature 0.8.
func choose(r *rand.Rand, logits []float32) int32 {
	const temperature = 0.8
	top, sum := float64(slices.Max(logits)), 0.0
	for _, l := range logits {
		sum += math.Exp((float64(l) - top) / temperature)
	}
	at := r.Float64() * sum
	for i, l := range logits {
		if at -= math.Exp((float64(l) - top) / temperature); at <= 0 {
			return int32(i)
		}
	}
	return int32(len(logits) - 1)
}

// keepTap gives the model memory for the hooks of a corpus.
type keepTap struct {
	index  map[int]int // hook of the model to chain of the corpus
	corpus *corpus
	spans  [][]byte
	rows   int
}

// Span implements model.Tap.
func (t *keepTap) Span(hook int) []byte {
	at, ok := t.index[hook]
	if !ok {
		return nil
	}
	t.spans[at] = make([]byte, t.rows*4*t.corpus.elements)
	return t.spans[at]
}

// RaggedSpan implements model.Tap.
func (t *keepTap) RaggedSpan(int, int) []byte { return nil }

// forward computes a step and keeps its rows.
func (t *keepTap) forward(m model.Model, ranges []model.Range, step int) error {
	c := t.corpus
	t.spans, t.rows = make([][]byte, len(c.chains)), 0
	for i := range ranges {
		phase := schema.PhaseDecode
		if step == 0 {
			phase = schema.PhasePrefill
		}
		for k := range ranges[i].Tokens {
			c.tokens = append(c.tokens, token{step: step, row: t.rows, sequence: i, position: ranges[i].Position + k,
				phase: phase})
			t.rows++
		}
	}
	if err := m.Forward(ranges, t); err != nil {
		return err
	}
	for i, span := range t.spans {
		for ; len(span) > 0; span = span[4:] {
			c.data[i] = binary.LittleEndian.AppendUint16(c.data[i],
				bf16(math.Float32frombits(binary.LittleEndian.Uint32(span))))
		}
	}
	return nil
}

// messages are the messages that an agent makes of a corpus, of about size bytes
// each, in their order on the bus. Rows that fill no message are left out: rows
// says how many there are.
func (c *corpus) messages(size int) (messages [][]byte, subject string, rows int, err error) {
	encoders := make([]*schema.VectorEncoder, len(c.chains))
	prev := make([]schema.Cursor, len(c.chains))
	for i, ch := range c.chains {
		encoders[i], err = schema.NewVectorEncoder(schema.Header{Tenant: "acme", Engine: "bench", Epoch: 0xbe7c4,
			Hook: ch.hook, Layer: ch.layer, DType: "bf16", Shape: []int{c.elements}, Model: "bench",
			PolicyVersion: "0123456789abcdef"})
		if err != nil {
			return nil, "", 0, err
		}
	}
	for n, t := range c.tokens {
		for i, e := range encoders {
			id := requestName(t.sequence)
			err := e.Append(schema.VectorRow{Seq: uint64(2*t.step + 1), Row: uint32(t.row), Number: uint64(t.sequence),
				Request: id, Position: int32(t.position), Phase: t.phase, CaptureNS: int64(t.step) * 1e6,
				Vec: c.data[i][n*c.rowBytes():][:c.rowBytes()]})
			if err != nil {
				return nil, "", 0, err
			}
			if e.Rows()*(c.rowBytes()+64+len(id)) < size {
				continue
			}
			m, h, err := e.Encode(prev[i])
			if err != nil {
				return nil, "", 0, err
			}
			prev[i], subject, rows = h.Last(), schema.Subject(h), rows+e.Rows()
			messages = append(messages, m)
			e.Reset()
		}
	}
	if len(messages) == 0 {
		return nil, "", 0, fmt.Errorf("%d bytes of rows fill no message of %d bytes", c.bytes(), size)
	}
	return messages, subject, rows, nil
}
