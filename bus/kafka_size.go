package bus

import (
	"slices"
	"sync"
)

// maxSizeRuns bounds what is remembered about where the bytes of a topic are.
const maxSizeRuns = 4096

// streamSize is about how many bytes lie between the ends of a topic. Kafka tells
// no more than the size of its files, which Trim does not change at once. So this
// adds up what was published and read here, and takes what others published for as
// large as the mean of that. It is a leaf.
type streamSize struct {
	mu       sync.Mutex
	id       string // of the topic
	runs     []sizeRun
	total    uint64
	sending  bool // a batch is under way: what is new may be its messages
	expected map[string]uint64
	known    uint64 // messages and bytes that were counted, for the mean
	bytes    uint64
}

// sizeRun is the bytes of the messages first to next-1.
type sizeRun struct {
	first, next int64
	bytes       uint64
}

// expect says what a topic held when this program first saw it.
func (s *streamSize) expect(id string, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected = map[string]uint64{id: bytes}
}

// saw books the ends of a topic, and is its size.
func (s *streamSize) saw(id string, start, end int64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != s.id {
		s.id, s.runs, s.total = id, nil, 0
		if bytes, ok := s.expected[id]; ok && end > start {
			s.insert(sizeRun{start, end, bytes})
		}
		s.expected = nil
	}
	s.cut(0, start)
	if at := s.end(start); at < end && !s.sending {
		s.insert(sizeRun{at, end, s.guess(end - at)})
	}
	return s.total
}

// begin says that a batch is under way.
func (s *streamSize) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending = true
}

// settled says that none is.
func (s *streamSize) settled() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending = false
}

// sent books a batch that was stored, and learns of what others stored before it.
func (s *streamSize) sent(first int64, messages int, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending = false
	s.known += uint64(messages)
	s.bytes += bytes
	if at := s.end(first); at < first {
		s.insert(sizeRun{at, first, s.guess(first - at)})
	}
	s.put(sizeRun{first, first + int64(messages), bytes})
}

// read books what a reader of the topic got.
func (s *streamSize) read(id string, first, next int64, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.runs) == 0 || id != s.id || first < s.runs[0].first || next > s.end(next) {
		return
	}
	s.known += uint64(next - first)
	s.bytes += bytes
	s.put(sizeRun{first, next, bytes})
}

// fits says whether so many more bytes stay within a bound.
func (s *streamSize) fits(bytes, bound uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total+bytes <= bound
}

// end is where the runs end; without any, it is at.
func (s *streamSize) end(at int64) int64 {
	if len(s.runs) == 0 {
		return at
	}
	return s.runs[len(s.runs)-1].next
}

func (s *streamSize) guess(messages int64) uint64 {
	if s.known == 0 {
		return 0
	}
	return uint64(float64(messages) * float64(s.bytes) / float64(s.known))
}

// put replaces what was believed of a range.
func (s *streamSize) put(r sizeRun) {
	s.cut(r.first, r.next)
	s.insert(r)
}

func (s *streamSize) insert(r sizeRun) {
	i := len(s.runs)
	for i > 0 && s.runs[i-1].first > r.first {
		i--
	}
	s.runs = slices.Insert(s.runs, i, r)
	s.total += r.bytes
	if len(s.runs) > maxSizeRuns {
		s.merge()
	}
}

// cut takes a range out of the runs; of a run that it halves, its share.
func (s *streamSize) cut(from, to int64) {
	if len(s.runs) == 0 || s.end(from) <= from || s.runs[0].first >= to {
		return
	}
	var kept []sizeRun
	for _, r := range s.runs {
		for _, part := range []sizeRun{{r.first, min(r.next, from), 0}, {max(r.first, to), r.next, 0}} {
			if part.first < part.next {
				part.bytes = uint64(float64(r.bytes) * float64(part.next-part.first) / float64(r.next-r.first))
				kept = append(kept, part)
			}
		}
	}
	s.runs, s.total = kept, 0
	for _, r := range kept {
		s.total += r.bytes
	}
}

// merge joins neighbours in pairs.
func (s *streamSize) merge() {
	var out []sizeRun
	for i := 0; i < len(s.runs); i++ {
		r := s.runs[i]
		if i+1 < len(s.runs) && s.runs[i+1].first == r.next {
			i++
			r.next, r.bytes = s.runs[i].next, r.bytes+s.runs[i].bytes
		}
		out = append(out, r)
	}
	s.runs = out
}
