package ring2

import (
	"fmt"
	"strings"
	"testing"
)

// An exhaustive model of one ring. Three processes take small steps: the writer
// (place, write, publish, wake), the reader (poll, copy, arm, look again,
// block) and the releaser, which is the agent's goroutine that gives records
// back. Memory is weak: a plain store waits in its process's buffer and may
// become visible after later ones; a release store waits until all earlier ones
// are visible; a read-modify-write waits until the buffer is empty. That is
// weaker than amd64 and as weak for stores as arm64. Sequential consistency
// would hide the lost wake-up that the exchanges prevent.
//
// A mutation takes one rule away. The explorer must find what then breaks:
// otherwise it proves nothing about the protocol that it finds correct.

const (
	modelSlots   = 3
	modelRecords = 5
)

// Words of the shared memory: payloads of two words, so that a torn one shows.
const (
	wordA       = 0 // one of each slot
	wordB       = modelSlots
	wordCommit  = 2 * modelSlots
	wordRelease = 3 * modelSlots
	wordNeed    = wordRelease + 1
	wordCount   = wordNeed + 1
)

type mutation int

const (
	noMutation mutation = iota
	commitBeforeWrite
	relaxedCommit
	wakeBeforeCommit
	plainWake
	claimOneTooMany
	copyBeforePoll
	noSecondLook
	plainArm
	releaseBeforeCopy
	mutations
)

var mutationNames = [...]string{"as it is", "commit before the payload is written", "commit without release order",
	"wake before the commit", "wake with a load instead of an exchange", "claim one slot too many",
	"payload read before commit was seen", "block without a second look", "arm with a store instead of an exchange",
	"release before the copy"}

type modelStore struct {
	word, value int8
	release     bool
}

// storeBuffer holds what a process stored and nobody else sees yet.
type storeBuffer struct {
	stores [6]modelStore
	n      int8
}

// modelState is comparable: the explorer visits each state once.
type modelState struct {
	memory  [wordCount]int8
	eventfd bool

	writerPC, record      int8
	writerSaw             bool
	readerPC, next, gotA  int8
	released              int8 // what the releaser gave back, visible or not
	writer, reader, freer storeBuffer
}

func (b *storeBuffer) put(word, value int, release bool) bool {
	if int(b.n) == len(b.stores) {
		return false
	}
	b.stores[b.n] = modelStore{int8(word), int8(value), release}
	b.n++
	return true
}

// load sees the process's own stores first.
func (s *modelState) load(b *storeBuffer, word int) int {
	for i := int(b.n) - 1; i >= 0; i-- {
		if int(b.stores[i].word) == word {
			return int(b.stores[i].value)
		}
	}
	return int(s.memory[word])
}

// exchange is a read-modify-write; it can only happen with an empty buffer.
func (s *modelState) exchange(word, value int) int {
	old := s.memory[word]
	s.memory[word] = int8(value)
	return int(old)
}

// drainable says whether the i-th store may become visible now.
func (b *storeBuffer) drainable(i int) bool {
	if b.stores[i].release {
		return i == 0
	}
	for j := range i {
		if b.stores[j].word == b.stores[i].word {
			return false
		}
	}
	return true
}

func (s *modelState) drain(b *storeBuffer, i int) {
	s.memory[b.stores[i].word] = b.stores[i].value
	copy(b.stores[i:], b.stores[i+1:])
	b.n--
	b.stores[b.n] = modelStore{}
}

// explorer visits every state that the processes can reach.
type explorer struct {
	mutation mutation
	seen     map[modelState]bool
	path     []string
	failure  string
}

func (e *explorer) fail(format string, args ...any) {
	if e.failure == "" {
		e.failure = fmt.Sprintf(format, args...) + ", after: " + strings.Join(e.path, ", ")
	}
}

func (e *explorer) visit(s modelState) {
	if e.failure != "" || e.seen[s] {
		return
	}
	e.seen[s] = true
	moved := false
	try := func(name string, step func(*modelState) bool) {
		next := s
		if !step(&next) {
			return
		}
		e.path = append(e.path, name)
		moved = true
		e.visit(next)
		e.path = e.path[:len(e.path)-1]
	}
	try("writer", e.stepWriter)
	try("reader", e.stepReader)
	try("release", e.stepReleaser)
	for _, p := range [...]struct {
		name   string
		buffer func(*modelState) *storeBuffer
	}{{"writer's store", func(s *modelState) *storeBuffer { return &s.writer }},
		{"reader's store", func(s *modelState) *storeBuffer { return &s.reader }},
		{"release store", func(s *modelState) *storeBuffer { return &s.freer }}} {
		for i := range int(p.buffer(&s).n) {
			try(p.name, func(next *modelState) bool {
				b := p.buffer(next)
				if !b.drainable(i) {
					return false
				}
				e.checkReuse(next, b.stores[i])
				next.drain(b, i)
				return true
			})
		}
	}
	if !moved && s.next != modelRecords {
		e.fail("everybody waits, %d of %d records are read", s.next, modelRecords)
	}
}

// checkReuse fails when a payload is overwritten that was not given back.
func (e *explorer) checkReuse(s *modelState, st modelStore) {
	if st.word < wordCommit && int(st.value)-1-modelSlots >= int(s.released) {
		e.fail("record %d is overwritten, released is %d", int(st.value)-1-modelSlots, s.released)
	}
}

// Steps of the writer, as in writerCore.place, publish and wake.
const (
	writerPlace = iota
	writerA
	writerB
	writerCommit
	writerWake
	writerPost
)

func (e *explorer) writerOrder() []int8 {
	switch e.mutation {
	case commitBeforeWrite:
		return []int8{writerPlace, writerCommit, writerA, writerB, writerWake, writerPost}
	case wakeBeforeCommit:
		return []int8{writerPlace, writerA, writerB, writerWake, writerPost, writerCommit}
	}
	return []int8{writerPlace, writerA, writerB, writerCommit, writerWake, writerPost}
}

func (e *explorer) stepWriter(s *modelState) bool {
	if s.record == modelRecords {
		return false
	}
	order := e.writerOrder()
	slot, value := int(s.record)%modelSlots, int(s.record)+1
	switch order[s.writerPC] {
	case writerPlace:
		free := s.load(&s.writer, wordRelease) + modelSlots
		if e.mutation == claimOneTooMany {
			free++
		}
		if int(s.record) >= free {
			return false
		}
	case writerA:
		if !s.writer.put(wordA+slot, value, false) {
			return false
		}
	case writerB:
		if !s.writer.put(wordB+slot, value, false) {
			return false
		}
	case writerCommit:
		if !s.writer.put(wordCommit+slot, value, e.mutation != relaxedCommit) {
			return false
		}
	case writerWake:
		if e.mutation == plainWake {
			s.writerSaw = s.load(&s.writer, wordNeed) == 1
			if s.writerSaw && !s.writer.put(wordNeed, 0, false) {
				return false
			}
		} else if s.writer.n > 0 {
			return false
		} else {
			s.writerSaw = s.exchange(wordNeed, 0) == 1
		}
	case writerPost:
		s.eventfd = s.eventfd || s.writerSaw
		s.writerSaw = false
	}
	if s.writerPC++; int(s.writerPC) == len(order) {
		s.writerPC = 0
		s.record++
	}
	return true
}

// Steps of the reader, as in readerCore.poll and Session.pause.
const (
	readerPoll = iota
	readerLoadCommit
	readerA
	readerB
	readerArm
	readerLook
	readerBlock
	readerDisarm
)

func (e *explorer) stepReader(s *modelState) bool {
	if s.next == modelRecords {
		return false
	}
	slot, want := int(s.next)%modelSlots, int(s.next)+1
	switch s.readerPC {
	case readerPoll:
		s.readerPC = readerLoadCommit
		if e.mutation == copyBeforePoll {
			s.gotA = int8(s.load(&s.reader, wordA+slot))
		}
	case readerLoadCommit:
		if s.load(&s.reader, wordCommit+slot) == want {
			s.readerPC = readerA
		} else {
			s.readerPC = readerArm
		}
	case readerA:
		if e.mutation != copyBeforePoll {
			s.gotA = int8(s.load(&s.reader, wordA+slot))
		}
		s.readerPC = readerB
	case readerB:
		if b := s.load(&s.reader, wordB+slot); int(s.gotA) != want || b != want {
			e.fail("record %d is read as %d and %d", want-1, s.gotA-1, b-1)
		}
		s.next, s.gotA, s.readerPC = s.next+1, 0, readerPoll
	case readerArm:
		if e.mutation == plainArm {
			if !s.reader.put(wordNeed, 1, false) {
				return false
			}
		} else {
			s.exchange(wordNeed, 1)
		}
		s.readerPC = readerLook
		if e.mutation == noSecondLook {
			s.readerPC = readerBlock
		}
	case readerLook:
		s.readerPC = readerBlock
		if s.load(&s.reader, wordCommit+slot) == want {
			s.readerPC = readerDisarm
		}
	case readerBlock:
		if !s.eventfd {
			return false
		}
		s.eventfd, s.readerPC = false, readerDisarm
	case readerDisarm:
		if s.reader.n > 0 {
			return false
		}
		s.exchange(wordNeed, 0)
		s.gotA, s.readerPC = 0, readerPoll
	}
	return true
}

// stepReleaser gives one more record back, as readerCore.setRelease.
func (e *explorer) stepReleaser(s *modelState) bool {
	limit := s.next
	if e.mutation == releaseBeforeCopy && (s.readerPC == readerA || s.readerPC == readerB) {
		limit++
	}
	if s.released >= limit || !s.freer.put(wordRelease, int(s.released)+1, true) {
		return false
	}
	s.released++
	return true
}

// Every order of every small step: nothing torn, nobody asleep for ever, nothing
// overwritten that was not given back.
func TestEveryInterleavingIsSafe(t *testing.T) {
	e := explorer{seen: map[modelState]bool{}}
	e.visit(modelState{})
	if e.failure != "" {
		t.Fatal(e.failure)
	}
	if len(e.seen) < 5000 {
		t.Fatalf("only %d states: the model does not interleave", len(e.seen))
	}
	t.Logf("%d states", len(e.seen))
}

// The model can fail: each rule that is taken away is missed.
func TestEveryRuleOfTheProtocolIsNeeded(t *testing.T) {
	for m := noMutation + 1; m < mutations; m++ {
		e := explorer{mutation: m, seen: map[modelState]bool{}}
		e.visit(modelState{})
		if e.failure == "" {
			t.Errorf("%s: nothing breaks in %d states", mutationNames[m], len(e.seen))
			continue
		}
		t.Logf("%s: %s", mutationNames[m], e.failure)
	}
}
