package llama

import (
	"encoding/binary"
	"unsafe"

	"sonde/dot"
)

// part computes some rows of a step, one after the other in memory.
type part struct {
	model *llama
	first int   // its first row in the step
	rows  []row // its rows

	x, norm, q, k, v, z, out, gate, up []float32 // one vector a row
	scores                             []float32 // of one head
	sampled                            []int     // which of its rows have logits
	inputs, logits                     []float32 // one vector for each of those
}

// prepare takes the step's rows from first, inclusive, to last, exclusive.
func (p *part) prepare(first, last int) {
	c := &p.model.config
	p.first, p.rows = first, p.model.rows[first:last]
	n, longest := len(p.rows), 0
	for i := range p.rows {
		longest = max(longest, p.rows[i].position+1)
	}
	p.x, p.norm, p.out = sized(p.x, n*c.Hidden), sized(p.norm, n*c.Hidden), sized(p.out, n*c.Hidden)
	p.q, p.z = sized(p.q, n*c.qWidth()), sized(p.z, n*c.qWidth())
	p.k, p.v = sized(p.k, n*c.kvWidth()), sized(p.v, n*c.kvWidth())
	p.gate, p.up = sized(p.gate, n*c.Intermediate), sized(p.up, n*c.Intermediate)
	p.scores = sized(p.scores, longest)
}

func sized(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}

func (p *part) compute() {
	m := p.model
	hidden := m.config.Hidden
	for i, r := range p.rows {
		widen(p.x[i*hidden:][:hidden], m.embed[int(r.token)*hidden:][:hidden])
	}
	p.emitTokens()
	p.emit(hookEmbed, p.x)
	for layer := range m.layers {
		p.emit(layerHook(layer, hookResidPre), p.x)
		p.attend(layer)
		p.feedForward(layer)
		p.emit(layerHook(layer, hookResidPost), p.x)
	}
	p.emit(hookResidFinal, p.x)
	p.finish()
}

// attend is the first branch of a layer: it adds attention to x.
func (p *part) attend(layer int) {
	m, w, n := p.model, &p.model.layers[layer], len(p.rows)
	p.normaliseRows(w.ln1)
	p.emit(layerHook(layer, hookLN1), p.norm)
	mul(w.q, p.q, p.norm, n)
	mul(w.k, p.k, p.norm, n)
	mul(w.v, p.v, p.norm, n)
	p.emit(layerHook(layer, hookQ), p.q)
	p.emit(layerHook(layer, hookK), p.k)
	p.emit(layerHook(layer, hookV), p.v)
	qWidth, kvWidth := m.config.qWidth(), m.config.kvWidth()
	for i := range p.rows {
		r := &p.rows[i]
		m.rotary.rotate(p.q[i*qWidth:][:qWidth], r.position)
		m.rotary.rotate(p.k[i*kvWidth:][:kvWidth], r.position)
		m.cache.store(layer, r.blocks, r.position, p.k[i*kvWidth:][:kvWidth], p.v[i*kvWidth:][:kvWidth])
	}
	// A row of this part may attend to positions that another part computes.
	m.stored[layer].Done()
	m.stored[layer].Wait()
	for i := range p.rows {
		p.gather(layer, &p.rows[i], p.q[i*qWidth:][:qWidth], p.z[i*qWidth:][:qWidth])
	}
	p.emit(layerHook(layer, hookZ), p.z)
	mul(w.o, p.out, p.z, n)
	p.emit(layerHook(layer, hookAttnOut), p.out)
	add(p.x, p.out)
	p.emit(layerHook(layer, hookResidMid), p.x)
}

// gather computes attention for one row: z is, head by head, the mean of the
// values up to its position, weighted by the softmax of q times the keys.
func (p *part) gather(layer int, r *row, q, z []float32) {
	c, kv := &p.model.config, &p.model.cache
	keys, values := kv.keys[layer], kv.values[layer]
	scores := p.scores[:r.position+1]
	scale := p.model.scale
	group := c.Heads / c.KVHeads
	clear(z)
	for head := range c.Heads {
		query, mean := q[head*c.HeadDim:][:c.HeadDim], z[head*c.HeadDim:][:c.HeadDim]
		offset := head / group * c.HeadDim
		for at := 0; at < len(scores); at += kv.blockTokens {
			some := scores[at:min(at+kv.blockTokens, len(scores))]
			dot.F32Rows(some, query, keys[kv.place(r.blocks, at)+offset:], kv.width)
		}
		factor := softmax(scores, scale)
		for at := 0; at < len(scores); at += kv.blockTokens {
			some := scores[at:min(at+kv.blockTokens, len(scores))]
			dot.AddRows(mean, some, values[kv.place(r.blocks, at)+offset:], kv.width)
		}
		for i := range mean {
			mean[i] *= factor
		}
	}
}

// feedForward is the second branch of a layer: it adds the MLP to x.
func (p *part) feedForward(layer int) {
	w, n := &p.model.layers[layer], len(p.rows)
	p.normaliseRows(w.ln2)
	p.emit(layerHook(layer, hookLN2), p.norm)
	mul(w.gate, p.gate, p.norm, n)
	mul(w.up, p.up, p.norm, n)
	gated(p.gate, p.up)
	p.emit(layerHook(layer, hookMLPPost), p.gate)
	mul(w.down, p.out, p.gate, n)
	p.emit(layerHook(layer, hookMLPOut), p.out)
	add(p.x, p.out)
}

// finish computes the logits of the rows that want them.
func (p *part) finish() {
	m := p.model
	hidden, vocab := m.config.Hidden, m.config.Vocab
	p.normaliseRows(m.norm)
	p.emit(hookFinalLN, p.norm)
	p.sampled, p.inputs = p.sampled[:0], p.inputs[:0]
	for i := range p.rows {
		if p.rows[i].logits != nil {
			p.sampled = append(p.sampled, i)
			p.inputs = append(p.inputs, p.norm[i*hidden:][:hidden]...)
		}
	}
	p.logits = sized(p.logits, len(p.sampled)*vocab)
	mul(m.head, p.logits, p.inputs, len(p.sampled))
	for j, i := range p.sampled {
		logits := p.logits[j*vocab:][:vocab]
		copy(p.rows[i].logits, logits)
		p.emitAt(hookLogits, p.rows[i].sample, logits)
	}
}

func (p *part) normaliseRows(weights []float32) {
	n := len(weights)
	for i := range p.rows {
		normalise(p.norm[i*n:][:n], p.x[i*n:][:n], weights, p.model.config.Epsilon)
	}
}

// emit writes a hook of all of the part's rows.
func (p *part) emit(hook int, values []float32) { p.emitAt(hook, p.first, values) }

// emitAt writes one or more rows of a hook, from a row of the step on.
func (p *part) emitAt(hook, at int, values []float32) {
	span := p.model.spans[hook]
	if span == nil || len(values) == 0 {
		return
	}
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(&values[0])), 4*len(values))
	copy(span[at*p.model.info.Hooks[hook].RowBytes():], bytes)
}

func (p *part) emitTokens() {
	span := p.model.spans[hookTokenIDs]
	if span == nil {
		return
	}
	for i, r := range p.rows {
		binary.LittleEndian.PutUint32(span[4*(p.first+i):], uint32(r.token))
	}
}

func mul(m *dot.Matrix, dst, x []float32, n int) { m.Mul(dst, x, n, 0, m.Rows()) }

func add(dst, x []float32) {
	for i, v := range x {
		dst[i] += v
	}
}
