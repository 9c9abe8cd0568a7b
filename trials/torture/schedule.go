package main

import (
	"math/rand/v2"
	"time"
)

// attack is one entry of the schedule: who dies together, how long everything
// ran before, and how long the dead stay away.
type attack struct {
	victims      []string
	before, down time.Duration
}

// schedule is a sequence of attacks that depends on its seed alone, never on what
// the pipeline does.
type schedule struct {
	kills  int // in all
	left   int
	random *rand.Rand
}

func newSchedule(seed uint64, kills int) *schedule {
	return &schedule{kills: kills, left: kills, random: rand.New(rand.NewPCG(seed, 1))}
}

// next draws an attack. The waits are short, so that deaths meet recoveries; one
// attack in three kills several at once, since only then the shared memory dies
// with both of its ends.
func (s *schedule) next() (attack, bool) {
	if s.left == 0 {
		return attack{}, false
	}
	names := []string{"engine", "agent", "materializer", "bus"}
	s.random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	count := 1
	if s.random.IntN(3) == 0 {
		count = 2 + s.random.IntN(3)
	}
	a := attack{victims: names[:min(count, s.left)], before: s.between(150, 3000)}
	if s.random.IntN(2) == 0 {
		a.down = s.between(1, 1500)
	}
	s.left -= len(a.victims)
	return a, true
}

func (s *schedule) between(fromMS, toMS int) time.Duration {
	return time.Duration(fromMS+s.random.IntN(toMS-fromMS)) * time.Millisecond
}
