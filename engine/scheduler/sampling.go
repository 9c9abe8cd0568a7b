package scheduler

import (
	"container/heap"
	"errors"
	"math"
)

// Sampling says how tokens are drawn from logits.
type Sampling struct {
	Temperature float64 // 0: the largest logit, and of equal ones the first
	TopP        float64 // in (0, 1]: only the most likely tokens that together reach it
	Seed        uint64
}

var errNoLogit = errors.New("sample: the model gave no finite logit")

// sampler draws tokens; its slices are scratch memory.
type sampler struct {
	weights []float64
	order   byWeight
}

// draw chooses the token at a position of a sample. Logits that are not finite
// are never chosen.
func (s *sampler) draw(logits []float32, how Sampling, sample, position int) (int32, error) {
	best, top := -1, float32(math.Inf(-1))
	for i, l := range logits {
		if l > top && !math.IsInf(float64(l), 1) {
			best, top = i, l
		}
	}
	if best < 0 {
		return 0, errNoLogit
	}
	if how.Temperature == 0 {
		return int32(best), nil
	}
	s.weights = s.weights[:0]
	sum := 0.0
	for _, l := range logits {
		w := 0.0
		if l <= top {
			w = math.Exp((float64(l) - float64(top)) / how.Temperature)
		}
		s.weights = append(s.weights, w)
		sum += w
	}
	u := uniform(how.Seed, sample, position)
	if how.TopP < 1 {
		return s.drawTop(u, how.TopP*sum, sum), nil
	}
	last := best
	for i, w := range s.weights {
		if w == 0 {
			continue
		}
		if last, u = i, u-w/sum; u < 0 {
			break
		}
	}
	return int32(last), nil
}

// drawTop draws from the heaviest tokens whose weights together reach target, of
// whole.
func (s *sampler) drawTop(u, target, whole float64) int32 {
	s.order.weights, s.order.ids = s.weights, s.order.ids[:0]
	// Tokens lighter than this do not even together make up what target leaves out.
	light := (whole - target) / float64(len(s.weights))
	for i, w := range s.weights {
		if w > 0 && w >= light {
			s.order.ids = append(s.order.ids, int32(i))
		}
	}
	heap.Init(&s.order)
	sum, kept := 0.0, len(s.order.ids)
	for sum < target && s.order.Len() > 0 {
		sum += s.weights[heap.Pop(&s.order).(int32)]
	}
	// Popped ids stand, heaviest last, behind the heap.
	popped := s.order.ids[s.order.Len():kept]
	for i := len(popped) - 1; i > 0; i-- {
		if u -= s.weights[popped[i]] / sum; u < 0 {
			return popped[i]
		}
	}
	return popped[0]
}

// byWeight is a heap of token ids, heaviest first, of equal ones the smaller id.
type byWeight struct {
	weights []float64
	ids     []int32
}

func (h *byWeight) Len() int { return len(h.ids) }
func (h *byWeight) Less(i, j int) bool {
	a, b := h.weights[h.ids[i]], h.weights[h.ids[j]]
	return a > b || a == b && h.ids[i] < h.ids[j]
}
func (h *byWeight) Swap(i, j int) { h.ids[i], h.ids[j] = h.ids[j], h.ids[i] }
func (h *byWeight) Push(id any)   { h.ids = append(h.ids, id.(int32)) }
func (h *byWeight) Pop() any {
	last := h.ids[len(h.ids)-1]
	h.ids = h.ids[:len(h.ids)-1]
	return last
}

// uniform is a number in [0, 1) that depends on its arguments alone: a
// counter-based generator, so that no draw depends on how many came before it.
func uniform(seed uint64, sample, position int) float64 {
	return float64(mix(mix(mix(seed)^uint64(sample))^uint64(position))>>11) * 0x1p-53
}

// mix is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
