package llama

import (
	"fmt"
	"sync"

	"sonde/dot"
	"sonde/engine/model"
)

const (
	maxThreads = 256
	// maxRows bounds the memory for one step.
	maxRows = 1 << 14
)

// llama is a model.Model.
type llama struct {
	config  config
	info    model.Info
	threads int

	embed  []uint16 // vocabulary times hidden
	layers []layer
	norm   []float32
	head   *dot.Matrix
	rotary rotary
	scale  float32 // of attention scores
	cache  cache

	// Of the step that is computed:
	rows    []row
	sampled int // rows with logits
	spans   [][]byte
	stored  []sync.WaitGroup // of each layer: done when all keys and values are stored
	parts   []part
}

// row is one token of the step.
type row struct {
	token    int32
	position int
	blocks   []int32
	logits   []float32 // non-nil: wanted
	sample   int       // the row's place among those with logits
}

func (m *llama) Info() *model.Info { return &m.info }

func (m *llama) Allocate(blocks, blockTokens int) (err error) {
	m.cache, err = newCache(m.config.Layers, blocks, blockTokens, m.config.kvWidth())
	return err
}

func (m *llama) CopyBlock(dst, src int32) { m.cache.copyBlock(dst, src) }

// RaggedRowBytes has no hook to be called for.
func (m *llama) RaggedRowBytes(hook, _ int) int {
	panic(fmt.Sprintf("BUG: hook %d of a llama is not ragged", hook))
}

// Forward computes one step. It fails on ranges that make no sense to the model,
// before it writes anything.
func (m *llama) Forward(ranges []model.Range, tap model.Tap) error {
	if err := m.lay(ranges); err != nil {
		return err
	}
	if len(m.rows) == 0 {
		return nil
	}
	m.takeSpans(tap)
	threads := min(m.threads, len(m.rows))
	for len(m.parts) < threads {
		m.parts = append(m.parts, part{model: m})
	}
	m.stored = make([]sync.WaitGroup, m.config.Layers)
	for i := range m.stored {
		m.stored[i].Add(threads)
	}
	var done sync.WaitGroup
	for i := range threads {
		p := &m.parts[i]
		p.prepare(len(m.rows)*i/threads, len(m.rows)*(i+1)/threads)
		if i == threads-1 {
			p.compute()
		} else {
			done.Go(p.compute)
		}
	}
	done.Wait()
	return nil
}

// lay checks the ranges and lays their tokens out as rows.
func (m *llama) lay(ranges []model.Range) error {
	m.rows, m.sampled = m.rows[:0], 0
	for i := range ranges {
		r := &ranges[i]
		if err := m.check(r); err != nil {
			return fmt.Errorf("compute %d tokens of request %q from position %d: %w", len(r.Tokens), r.Request,
				r.Position, err)
		}
		for j, token := range r.Tokens {
			m.rows = append(m.rows, row{token: token, position: r.Position + j, blocks: r.Blocks})
		}
		if r.Logits != nil {
			last := &m.rows[len(m.rows)-1]
			last.logits, last.sample = r.Logits, m.sampled
			m.sampled++
		}
	}
	if len(m.rows) > maxRows {
		return fmt.Errorf("compute a step of %d tokens: at most %d; use smaller chunks of prompts", len(m.rows), maxRows)
	}
	return nil
}

func (m *llama) check(r *model.Range) error {
	end := r.Position + len(r.Tokens)
	switch {
	case m.cache.blocks == 0:
		return fmt.Errorf("there are no KV blocks: allocate some first")
	case len(r.Tokens) == 0 || r.Position < 0:
		return fmt.Errorf("there are no tokens, or the first position is negative")
	case end > m.config.Context:
		return fmt.Errorf("the model's context has %d positions", m.config.Context)
	case len(r.Blocks) < (end+m.cache.blockTokens-1)/m.cache.blockTokens:
		return fmt.Errorf("%d KV blocks of %d tokens are too few", len(r.Blocks), m.cache.blockTokens)
	case r.Logits != nil && len(r.Logits) != m.config.Vocab:
		return fmt.Errorf("logits of %d numbers do not fit the vocabulary of %d", len(r.Logits), m.config.Vocab)
	}
	for _, token := range r.Tokens {
		if token < 0 || int(token) >= m.config.Vocab {
			return fmt.Errorf("token %d is not in the vocabulary of %d", token, m.config.Vocab)
		}
	}
	for _, b := range r.Blocks {
		if b < 0 || int(b) >= m.cache.blocks {
			return fmt.Errorf("there is no KV block %d; there are %d", b, m.cache.blocks)
		}
	}
	return nil
}

// takeSpans asks for the memory of all hooks, which the threads then share.
func (m *llama) takeSpans(tap model.Tap) {
	for i := range m.spans {
		m.spans[i] = tap.Span(i)
		rows := len(m.rows)
		if i == hookLogits {
			rows = m.sampled
		}
		if n := rows * m.info.Hooks[i].RowBytes(); m.spans[i] != nil && len(m.spans[i]) != n {
			panic(fmt.Sprintf("BUG: hook %s has %d bytes for %d rows, %d bytes", m.info.Hooks[i].Name, len(m.spans[i]), rows, n))
		}
	}
}
