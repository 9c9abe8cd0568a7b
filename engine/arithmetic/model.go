package arithmetic

import (
	"encoding/binary"
	"fmt"

	"sonde/engine/model"
	"sonde/ring2"
)

// Options of the model.
type Options struct {
	Layers  int // 0: 3
	Context int // 0: 4096 tokens
}

// arithmetic keeps one word per position where a real model keeps keys and
// values: a hash of the token and of what stands at earlier positions.
type arithmetic struct {
	info        model.Info
	hookKeys    []uint64
	kv          []uint64
	blockTokens int
	rowKeys     []uint64 // of the step's rows, in order
	sampled     []int    // indices into rowKeys: the rows with logits
}

// New makes the model.
func New(o Options) model.Model {
	if o.Layers == 0 {
		o.Layers = 3
	}
	if o.Context == 0 {
		o.Context = 4096
	}
	m := &arithmetic{info: model.Info{Name: "arithmetic", Revision: "1", WeightsDigest: "none", Quantisation: "none",
		Layers: o.Layers, DModel: DModel, Vocab: Vocab, Context: o.Context, EOS: EOS, Hooks: allHooks(o.Layers)}}
	for i := range m.info.Hooks {
		m.hookKeys = append(m.hookKeys, hookKey(&m.info.Hooks[i]))
	}
	return m
}

func (m *arithmetic) Info() *model.Info { return &m.info }

// maxPositions bounds the KV storage: 8 bytes a position.
const maxPositions = 1 << 28

func (m *arithmetic) Allocate(blocks, blockTokens int) error {
	if blocks < 1 || blockTokens < 1 || blocks > maxPositions/blockTokens {
		return fmt.Errorf("allocate %d blocks of %d tokens: want 1 to %d positions", blocks, blockTokens, maxPositions)
	}
	m.kv, m.blockTokens = make([]uint64, blocks*blockTokens), blockTokens
	return nil
}

func (m *arithmetic) CopyBlock(dst, src int32) {
	copy(m.block(dst), m.block(src))
}

func (m *arithmetic) block(b int32) []uint64 {
	return m.kv[int(b)*m.blockTokens : (int(b)+1)*m.blockTokens]
}

func (m *arithmetic) RaggedRowBytes(hook, position int) int {
	h := &m.info.Hooks[hook]
	return units(h, position) * h.RowBytes()
}

func (m *arithmetic) Forward(ranges []model.Range, tap model.Tap) error {
	m.rowKeys, m.sampled = m.rowKeys[:0], m.sampled[:0]
	for i := range ranges {
		r := &ranges[i]
		for _, id := range r.Tokens {
			if id < 0 || id >= Vocab {
				return fmt.Errorf("compute token %d of request %q: the vocabulary has %d", id, r.Request, Vocab)
			}
		}
		m.attend(r)
		sequence := sequenceKey(r.Request, r.Sample)
		for j := range r.Tokens {
			m.rowKeys = append(m.rowKeys, rowKey(sequence, r.Position+j, r.Pass))
		}
		if r.Logits != nil {
			m.sampled = append(m.sampled, len(m.rowKeys)-1)
		}
	}
	for i := range m.info.Hooks {
		m.show(i, ranges, tap)
	}
	return nil
}

// attend computes the states of a range and its logits. Each state depends on
// the one before and on a few earlier ones, all read through the blocks.
func (m *arithmetic) attend(r *model.Range) {
	const probes = 3
	state := uint64(0)
	if r.Position > 0 {
		state = *m.slot(r, r.Position-1)
	}
	for j, id := range r.Tokens {
		position := r.Position + j
		state = mix(state ^ uint64(id))
		for p := range min(probes, position) {
			at := int(mix(uint64(position*probes+p)) % uint64(position))
			state = mix(state ^ *m.slot(r, at))
		}
		*m.slot(r, position) = state
	}
	for i := range r.Logits {
		r.Logits[i] = logit(mix(state + uint64(i)*golden))
	}
}

func (m *arithmetic) slot(r *model.Range, position int) *uint64 {
	return &m.kv[int(r.Blocks[position/m.blockTokens])*m.blockTokens+position%m.blockTokens]
}

// show writes all rows of one hook.
func (m *arithmetic) show(hook int, ranges []model.Range, tap model.Tap) {
	h := &m.info.Hooks[hook]
	if h.Ragged {
		m.showRagged(hook, ranges, tap)
		return
	}
	span := tap.Span(hook)
	if span == nil {
		return
	}
	if h.Name == tokenIDs {
		for i := range ranges {
			for _, id := range ranges[i].Tokens {
				binary.LittleEndian.PutUint32(span, uint32(id))
				span = span[4:]
			}
		}
		return
	}
	n, key := h.RowBytes(), m.hookKeys[hook]
	if h.Select == ring2.SelectSampled {
		for i, row := range m.sampled {
			fill(span[i*n:(i+1)*n], h.DType, m.rowKeys[row]^key)
		}
		return
	}
	for row, rowKey := range m.rowKeys {
		fill(span[row*n:(row+1)*n], h.DType, rowKey^key)
	}
}

func (m *arithmetic) showRagged(hook int, ranges []model.Range, tap model.Tap) {
	row := 0
	for i := range ranges {
		r := &ranges[i]
		span := tap.RaggedSpan(hook, i)
		for j := range r.Tokens {
			if span != nil {
				n := m.RaggedRowBytes(hook, r.Position+j)
				fill(span[:n], m.info.Hooks[hook].DType, m.rowKeys[row]^m.hookKeys[hook])
				span = span[n:]
			}
			row++
		}
	}
}
