package bustest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"sonde/bus"
	"sonde/bus/bustest"
)

// stored publishes a, b and c at once, with fate for the first attempt of b, and
// tells what the stream holds and what the acknowledgements said.
func stored(t *testing.T, fate bustest.Fate) (stream, answers string) {
	t.Helper()
	b := bustest.New()
	defer b.Close()
	b.OnPublish(func(m bus.Message, attempt int) bustest.Fate {
		if string(m.Data) == "b" && attempt == 1 {
			return fate
		}
		return bustest.Take
	})
	var all sync.WaitGroup
	var said []string
	b.Stop() // until all of them wait
	for _, m := range []string{"a", "b", "c"} {
		all.Add(1)
		if err := b.Publish(context.Background(), bus.Message{Subject: "sonde.v1.x", Data: []byte(m)},
			func(seq uint64, err error) {
				said = append(said, fmt.Sprintf("%s%d%t", m, seq, errors.Is(err, bus.ErrRefused)))
				all.Done()
			}); err != nil {
			t.Fatal(err)
		}
	}
	b.Start()
	all.Wait()
	for _, d := range b.Messages() {
		stream += string(d.Data)
	}
	return stream, strings.Join(said, " ")
}

func TestFates(t *testing.T) {
	for _, c := range []struct {
		fate            bustest.Fate
		stream, answers string
	}{
		{bustest.Take, "abc", "a1false b2false c3false"},
		{bustest.Fail, "abc", "a1false b2false c3false"},
		{bustest.Duplicate, "abbc", "a1false b3false c4false"},
		{bustest.LoseAcks, "abcbc", "a1false b4false c5false"},
		{bustest.Refuse, "ac", "a1false b0true c2false"},
	} {
		if stream, answers := stored(t, c.fate); stream != c.stream || answers != c.answers {
			t.Errorf("fate %d: stream %s, answers %s; want %s, %s", c.fate, stream, answers, c.stream, c.answers)
		}
	}
}
