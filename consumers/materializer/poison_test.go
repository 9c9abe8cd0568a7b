package materializer

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A poison message of each kind, cut, changed or of another version, stands between
// good ones: all of these arrive.
func TestAPoisonMessageOfEachKindStopsNothing(t *testing.T) {
	r := newRandom(t)
	b, lake, dir := newBus(t), t.TempDir(), t.TempDir()
	sources := newSources(r, 1, 20)
	messages := shuffled(r, sources, false)
	golden, err := filepath.Glob("../../schema/testdata/*.arrow")
	if err != nil || len(golden) < 5 {
		t.Fatalf("golden messages %v, %v", golden, err)
	}
	all := messages[:1:1]
	for i, path := range golden {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		changed := bytes.Clone(whole)
		for range 20 {
			changed[r.IntN(len(changed))] ^= byte(1 + r.IntN(255))
		}
		all = append(all, whole[:r.IntN(len(whole))], changed, whole[len(whole)/2:])
		all = append(all, messages[1+i*(len(messages)-1)/len(golden):1+(i+1)*(len(messages)-1)/len(golden)]...)
	}
	publish(t, b, all)
	o := options(b, lake)
	o.DeadLetterDir = dir
	m := materialize(t, o)
	if n := valueOf(t, m.metrics.deadLetters); n < float64(2*len(golden)) {
		t.Errorf("%v dead letters of %d poison messages", n, 3*len(golden))
	}
	checkStored(t, lake, sources)
}
