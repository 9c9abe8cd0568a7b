package training

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"sort"

	"sonde/consumers/detector"
	"sonde/lakehouse"
)

// sampleKey names one sample of one request in the dataset.
type sampleKey struct{ epoch, number uint64 }

// sample is one sample of a chosen request.
type sample struct {
	request *request
	prompt  int32 // tokens
	tokens  int32 // that the phase covers
}

// request is one external request id with all its samples: they share a prompt, so
// they stay on one side of the split and count as one.
type request struct {
	id       string
	positive bool
	heldOut  bool
}

// set is the chosen requests.
type set struct {
	requests []*request // by hash of the id
	samples  map[sampleKey]*sample
	adapter  string
}

// maxRequests bounds the memory for the list of requests.
const maxRequests = 4 << 20

// chooseRequests reads which requests are positive and clean, and splits each class
// in the order of a hash of the request id.
func chooseRequests(ctx context.Context, lake Lake, o Options) (*set, error) {
	s := &set{samples: map[sampleKey]*sample{}}
	byID := map[string]*request{}
	adapters := map[string]string{} // adapter -> a request
	err := lake.Requests(ctx, lakehouse.Query{}, func(r *lakehouse.Request) error {
		positive := r.Labels[o.Positive.Key] == o.Positive.Value && has(r.Labels, o.Positive.Key)
		clean := !positive
		if o.Negative != nil {
			clean = r.Labels[o.Negative.Key] == o.Negative.Value && has(r.Labels, o.Negative.Key)
		}
		if positive == clean { // neither, or a request of both classes
			return nil
		}
		q := byID[r.Request]
		switch {
		case q == nil && len(byID) >= maxRequests:
			return fmt.Errorf("train a detector: the dataset has more than %d requests", maxRequests)
		case q == nil:
			q = &request{id: r.Request, positive: positive}
			byID[r.Request] = q
		case q.positive != positive:
			return fmt.Errorf("train a detector: request %q is in the dataset with both labels; the label of a request must "+
				"not change", r.Request)
		}
		adapters[r.Adapter] = r.Request
		s.adapter = r.Adapter
		s.samples[sampleKey{r.Epoch, r.Number}] = &sample{request: q, prompt: r.PromptTokens, tokens: covered(o.Phase, r)}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(adapters) > 1 {
		return nil, fmt.Errorf("train a detector: requests used %d adapters, like %s; a detector is bound to one: choose "+
			"the requests with --positive and --negative", len(adapters), examples(adapters))
	}
	for _, q := range byID {
		s.requests = append(s.requests, q)
	}
	return s, s.split(o)
}

func has(labels map[string]string, key string) bool {
	_, ok := labels[key]
	return ok
}

func examples(adapters map[string]string) string {
	var names []string
	for adapter, id := range adapters {
		names = append(names, fmt.Sprintf("%q (%s)", adapter, id))
	}
	sort.Strings(names)
	return fmt.Sprint(names[:min(len(names), 3)])
}

// covered is how many tokens of a request a phase covers.
func covered(phase string, r *lakehouse.Request) int32 {
	switch phase {
	case detector.PhasePrefill:
		return r.PromptTokens
	case detector.PhaseDecode:
		return r.GeneratedTokens
	}
	return r.PromptTokens + r.GeneratedTokens
}

// split holds out a share of each class. The order is that of a hash of the id, so
// it has nothing to do with when a request came or what it is called.
func (s *set) split(o Options) error {
	hash := func(q *request) string {
		sum := sha256.Sum256([]byte("holdout " + q.id))
		return string(sum[:])
	}
	sort.Slice(s.requests, func(i, k int) bool { return hash(s.requests[i]) < hash(s.requests[k]) })
	for _, positive := range []bool{true, false} {
		var class []*request
		for _, q := range s.requests {
			if q.positive == positive {
				class = append(class, q)
			}
		}
		heldOut := int(math.Round(o.HoldOut * float64(len(class))))
		for _, q := range class[:heldOut] {
			q.heldOut = true
		}
		if len(class)-heldOut < leastFit || heldOut < leastHeldOut {
			name := o.Positive.String()
			if !positive && o.Negative != nil {
				name = o.Negative.String()
			} else if !positive {
				name = "without " + name
			}
			return fmt.Errorf("train a detector: the dataset has %d requests %s, of which %d would be held out; at least %d "+
				"are needed to fit and %d held out: capture more, or change --holdout", len(class), name, heldOut, leastFit,
				leastHeldOut)
		}
	}
	return nil
}

// fitted counts the requests that are not held out.
func (s *set) fitted() Counts {
	var c Counts
	for _, q := range s.requests {
		switch {
		case q.heldOut:
		case q.positive:
			c.Positive++
		default:
			c.Clean++
		}
	}
	return c
}
