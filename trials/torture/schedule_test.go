package main

import (
	"fmt"
	"testing"
)

func TestASeedRepeatsItsSchedule(t *testing.T) {
	list := func(seed uint64) (string, map[string]int, int) {
		text, kills, together := "", map[string]int{}, 0
		s := newSchedule(seed, 240)
		for {
			a, ok := s.next()
			if !ok {
				return text, kills, together
			}
			for _, name := range a.victims {
				kills[name]++
			}
			if len(a.victims) > 1 {
				together++
			}
			text += fmt.Sprintln(a)
		}
	}
	first, kills, together := list(7)
	if again, _, _ := list(7); again != first {
		t.Error("the same seed gave another schedule")
	}
	if other, _, _ := list(8); other == first {
		t.Error("another seed gave the same schedule")
	}
	sum := 0
	for _, name := range []string{"engine", "agent", "materializer", "bus"} {
		sum += kills[name]
		if kills[name] < 20 {
			t.Errorf("%s dies %d times", name, kills[name])
		}
	}
	if sum != 240 || together < 10 {
		t.Errorf("%d kills, %d attacks on several", sum, together)
	}
}
