package steptime

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestQuantilesOfFewSteps(t *testing.T) {
	a := Arm{Durations: []time.Duration{1, 2, 3, 4}}
	for q, want := range map[float64]time.Duration{0: 1, 0.25: 1, 0.5: 2, 0.51: 3, 0.99: 4, 1: 4} {
		if got := a.Quantile(q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	empty := Arm{}
	if got := empty.Quantile(0.5); got != 0 {
		t.Errorf("quantile of nothing is %d", got)
	}
}

func TestOnlyStepsOfTheSameWorkAreCompared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "steps")
	text := "1000 10 4 4\n1001 11 40 4\n1002 12 3 3\n1003 13 4 4\n2000 14 4 4\n1004 1"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	steps, err := Read(path)
	if err != nil || len(steps) != 5 {
		t.Fatalf("%d steps, %v; want 5", len(steps), err)
	}
	a := Alike("a", steps, 4, Window{time.Unix(0, 1000), time.Unix(0, 2000)})
	if len(a.Durations) != 2 || a.Durations[0] != 10 || a.Durations[1] != 13 {
		t.Errorf("compared %v, want 10 and 13", a.Durations)
	}
	b := Alike("b", steps, 4, Window{time.Unix(0, 2000), time.Unix(0, 3000)})
	if got := Compare("x", &b, &a); got != "x                                    median 1.400  p99 1.077" {
		t.Errorf("%q", got)
	}
}
