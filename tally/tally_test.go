package tally

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"sonde/bus/bustest"
	"sonde/schema"
)

func header(epoch, seq uint64, rows uint32) *schema.Header {
	h := &schema.Header{Engine: "llm", Rank: 2, Epoch: epoch}
	for row := range rows {
		h.AddRow(seq, row)
	}
	return h
}

func TestStagesAreHeardEachSecondAndOnceMoreAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New()
		defer b.Close()
		var heard []schema.StageCounts
		stop, err := b.Listen(schema.CountsSubject, func(data []byte) {
			c, err := schema.ParseStageCounts(data)
			if err != nil {
				t.Error(err)
			}
			heard = append(heard, c)
		})
		if err != nil {
			t.Fatal(err)
		}
		book := NewBook(schema.StageMaterializer)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); Tell(ctx, b, slog.New(slog.DiscardHandler), book.Counts) }()
		book.Add(header(7, 30, 4), "stored", 4)
		book.Add(header(7, 10, 1), "stored", 1)
		time.Sleep(3*Period + Period/2)
		book.Add(header(7, 31, 1), "stored", 1)
		cancel()
		<-ended
		synctest.Wait()
		stop()
		if len(heard) != 4 {
			t.Fatalf("heard %d times: %+v", len(heard), heard)
		}
		last := heard[3]
		if last.Rows["stored"] != 6 || heard[2].Rows["stored"] != 5 || last.FromSeq != 10 || last.ToSeq != 32 ||
			last.Engine != "llm" || last.Rank != 2 || last.Epoch != "0000000000000007" || last.Member == "" {
			t.Errorf("heard %+v", heard)
		}
	})
}

func TestABookForgetsTheEpochThatIsQuietForLongest(t *testing.T) {
	book := NewBook(schema.StageDetector)
	for epoch := range uint64(maxEpochs) {
		book.Add(header(epoch+1, 1, 1), "read", 1)
	}
	book.Add(header(1, 2, 1), "read", 1) // it is not the quietest any more
	book.Add(header(9999, 1, 1), "read", 1)
	got := map[string]uint64{}
	for _, c := range book.Counts() {
		got[c.Epoch] = c.Rows["read"]
	}
	if len(got) != maxEpochs || got[fmt.Sprintf("%016x", 1)] != 2 || got[fmt.Sprintf("%016x", 2)] != 0 {
		t.Errorf("%d epochs; the first has %d rows, the second %d", len(got), got[fmt.Sprintf("%016x", 1)],
			got[fmt.Sprintf("%016x", 2)])
	}
}
