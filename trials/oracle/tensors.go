package oracle

import (
	"context"
	"fmt"

	"sonde/lakehouse"
)

// CheckTensors reads back tensors of n sequences, spread evenly over all that the
// engine witnessed, and compares them with what the checker knows after it was
// fed the same lake: each row is the last stored pass of its position, with the
// witnessed bytes, and each computed position without a row is named as missing.
// It returns how many rows it compared; its error names the first that is wrong.
func (c *Checker) CheckTensors(ctx context.Context, lake *lakehouse.Lake, n int) (rows int, err error) {
	n = min(n, len(c.names))
	for i := range n {
		q, h := uint32(i*len(c.names)/n), uint16(i%len(c.hookNames))
		found, err := c.checkTensor(ctx, lake, q, h)
		if err != nil {
			return rows, fmt.Errorf("request %s sample %d, hook %s of layer %d: %w", c.names[q].request, c.names[q].sample,
				c.hookNames[h].name, c.hookNames[h].layer, err)
		}
		rows += found
	}
	return rows, nil
}

// place is what is known of one position of a sequence at a hook.
type place struct {
	pass   int // the last that is stored
	hash   Hash
	stored bool
}

// places lists the computed positions of a sequence at a hook.
func (c *Checker) places(sequence uint32, hook uint16) map[int32]place {
	out := map[int32]place{}
	for pass, gone := 0, 0; gone < 64; pass++ { // passes have few gaps: where a prefix was cached
		s := c.stripes[stripeKey{sequence, uint32(pass), hook}]
		if s == nil {
			gone++
			continue
		}
		gone = 0
		for i, state := range s.state {
			at := int32(s.base + i)
			if state&witnessed == 0 {
				continue
			}
			p := out[at]
			if state&storedOnce != 0 {
				p = place{pass, s.hashes[i], true}
			}
			out[at] = p
		}
	}
	return out
}

func (c *Checker) checkTensor(ctx context.Context, lake *lakehouse.Lake, sequence uint32, hook uint16) (int, error) {
	q, h := c.names[sequence], c.hookNames[hook]
	want := c.places(sequence, hook)
	if len(want) == 0 {
		return 0, nil // a hook of sampled rows, in a sequence that died before
	}
	t, err := lake.Tensor(ctx, lakehouse.TensorQuery{Request: q.request, Sample: q.sample, Hook: h.name, Layer: h.layer,
		AllowPartial: true})
	if err != nil {
		return 0, err
	}
	raw := t.Raw
	for i, position := range t.Positions {
		p := want[position]
		row := raw[:t.RowBytes[i]]
		raw = raw[len(row):]
		if !p.stored || int(t.Passes[i]) != p.pass || HashOf(row) != p.hash {
			return 0, fmt.Errorf("position %d of pass %d is not what the last stored pass, %d, holds (stored: %v)", position,
				t.Passes[i], p.pass, p.stored)
		}
		delete(want, position)
	}
	if len(raw) > 0 {
		return 0, fmt.Errorf("%d bytes belong to no row", len(raw))
	}
	for _, gap := range t.Missing {
		if gap.Reason == "" {
			return 0, fmt.Errorf("positions %d to %d are missing without a reason", gap.From, gap.To)
		}
		for position := gap.From; position < gap.To; position++ {
			if want[position].stored {
				return 0, fmt.Errorf("position %d is stored, but missing as %q", position, gap.Reason)
			}
			delete(want, position)
		}
	}
	for position := range want {
		return 0, fmt.Errorf("position %d was computed, and is neither in the tensor nor named as missing", position)
	}
	return len(t.Positions), nil
}
