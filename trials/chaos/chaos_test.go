package main

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"sonde/bus"
)

var everything = regexp.MustCompile("")

func TestASeedRepeatsItsSchedule(t *testing.T) {
	for _, on := range allBuses {
		text := func(seed uint64) string { return fmt.Sprint(newSchedule(seed, on, 90, everything)) }
		first := text(7)
		if again := text(7); again != first {
			t.Errorf("%s: the same seed gave another schedule", on)
		}
		if first == text(8) {
			t.Errorf("%s: another seed gave the same schedule", on)
		}
	}
}

// A kind that is never drawn is a promise that nobody checks.
func TestEachKindComesBeforeAnyComesTwice(t *testing.T) {
	for n := range 3 * len(allBuses) {
		seed, on := uint64(n), allBuses[n%len(allBuses)]
		count, together, last := map[string]int{}, 0, fault{Kind: &kind{}}
		for _, f := range newSchedule(seed, on, 480, everything) {
			if !f.Kind.has(on) {
				t.Errorf("%s: %s is not of this bus", on, f.Kind.name)
			}
			if f.Together {
				together++
				if last.Together || last.Kind.group == f.Kind.group || !f.Kind.mixes || !last.Kind.mixes {
					t.Errorf("%s: %v overlaps %v", on, f, last)
				}
			}
			count[f.Kind.name]++
			last = f
		}
		least, most := 480, 0
		for i := range kinds {
			if n := count[kinds[i].name]; kinds[i].has(on) {
				least, most = min(least, n), max(most, n)
			}
		}
		if least < 8 || most > least+1 || together < 10 {
			t.Errorf("seed %d, %s: a kind comes %d to %d times, and %d faults overlap another", seed, on, least, most, together)
		}
	}
}

func TestArgumentsThatMakeNoSenseAreRefused(t *testing.T) {
	for _, args := range []string{"-buses rabbit", "-faults 0", "-at-once 0", "-only [", "something", "-seed x"} {
		if _, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
	o, err := parse(strings.Fields("-seed 5 -buses kafka,nats -faults 3"))
	if err != nil || o.seed != 5 || o.faults != 3 || fmt.Sprint(o.buses) != "[kafka nats]" {
		t.Errorf("got %+v, %v", o, err)
	}
}

// The table must not take a fault that was not made, or not recovered from, for one that
// was.
func TestTheTableCountsWhatHappened(t *testing.T) {
	one, other := &kinds[0], &kinds[1]
	r := &result{on: onNATS, seed: 5, captured: 10, stored: 8, named: 2, why: errors.New("planted"), outcomes: []outcome{
		{fault: fault{Kind: one}, recovery: 2 * time.Second, named: 2},
		{fault: fault{Kind: one}},
		{fault: fault{Kind: one}, unfelt: true, recovery: time.Second},
		{fault: fault{Kind: other}, notHere: "no root"},
	}}
	if n := r.injected(); n != 2 {
		t.Errorf("%d faults were made", n)
	}
	var page bytes.Buffer
	writeTable(&page, []*result{r})
	for _, want := range []string{"| " + one.name + " | 2 | 1 | 2.0 s of 60 s | 2 |",
		"| " + other.name + " | NOT RUN: 1 | | | |", "| **all** | **2** | **1** | | **2** |",
		"FAILED; 10 rows computed = 8 stored + 2 named by the ledger; **0 unexplained**"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks %q:\n%s", want, &page)
		}
	}
}

// A run that never came to count its rows must not look like one without a defect.
func TestAFailedRunClaimsNoRows(t *testing.T) {
	var page bytes.Buffer
	writeTable(&page, []*result{{on: onKafka, seed: 1, why: errors.New("planted")}})
	if strings.Contains(page.String(), "unexplained") || !strings.Contains(page.String(), "FAILED") {
		t.Errorf("the page is:\n%s", &page)
	}
}

func TestARowIsChargedToTheFaultThatItsRequestNames(t *testing.T) {
	for request, want := range map[string]int{"f0017-chaos-a-000123-0badcafe": 17, "f0000-probe-3": 0, "req-1": -1,
		"": -1} {
		if got := chargedTo(request); got != want {
			t.Errorf("%q is charged to %d, want %d", request, got, want)
		}
	}
}

// A planted bug whose text has gone from the product proves nothing any more. That each
// is found is shown by -plant, which takes a minute.
func TestPlantedBugsStillFitTheProduct(t *testing.T) {
	for _, p := range plants {
		if _, err := p.apply("../.."); err != nil {
			t.Error(err)
		}
		if newSchedule(1, onNATS, p.faults, regexp.MustCompile(p.only)) == nil {
			t.Errorf("%s: no fault is named %q", p.name, p.only)
		}
	}
}

// A partition without an engine would be one whose faults nobody notices.
func TestEveryPartitionHasAnEngine(t *testing.T) {
	has := map[int]bool{}
	for _, name := range engineNames {
		has[bus.PartitionOf("sonde.v1.default."+name+".0.vectors", partitions)] = true
	}
	if len(has) != partitions {
		t.Errorf("engines %v are in the partitions %v of %d", engineNames, has, partitions)
	}
}
