package ring2

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const (
	goldenJournal      = "testdata/journal_v1.bin"
	goldenJournalEpoch = 0x1122334455667788
)

// The records of the golden journal, and what a successor tells of them: one
// waited and got its room, one never did, and the last one is torn.
var goldenJournalRecords = []journalRecord{
	{1, 0, KindModel, 0, AppendModel(nil, Model{Name: "m", Layers: 2})},
	{2, 1, KindStep, 0, AppendStep(nil, Step{Layouts: []StepLayout{{CaptureSeq: 2}},
		Ranges: []StepRange{{Number: 7, Count: 3, Sampled: true, LayoutMask: 1}}})},
	{3, 3, KindRequestEnd, ObituaryNeverPut, AppendRequestEnd(nil, RequestEnd{Number: 7, GeneratedTokens: 1})},
	{4, 3, KindStep, ObituaryNeverPut, AppendStep(nil, Step{Step: 1,
		Ranges: []StepRange{{Number: 7, Position: 3, Count: 1}}})},
	{3, 3, KindRequestEnd, 0, AppendRequestEnd(nil, RequestEnd{Number: 7, GeneratedTokens: 1})},
}

var goldenJournalTold = []string{"0 model", "1 step", "3 step never put", "3 request_end", "4 end_of_journal"}

func TestTheGoldenJournalIsWrittenAndTold(t *testing.T) {
	b := appendJournalHeader(nil, goldenJournalEpoch, 3)
	for _, r := range goldenJournalRecords {
		b = appendJournalRecord(b, r.ordinal, r.seq, r.kind, r.flags, r.payload)
	}
	b = append(b, "torn"...)
	want, err := os.ReadFile(goldenJournal)
	if err != nil {
		t.Fatal(err)
	}
	reportFirstDifference(t, b, want)
	state := t.TempDir()
	dir := filepath.Join(state, journalName(0, goldenJournalEpoch))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(segmentPath(dir, 1), want, 0o600); err != nil {
		t.Fatal(err)
	}
	told := tell(t, state)
	if got := describe(told); !slices.Equal(got, goldenJournalTold) {
		t.Fatalf("the golden journal tells %q, want %q", got, goldenJournalTold)
	}
	for _, o := range told {
		if o.DeadEpoch != goldenJournalEpoch {
			t.Errorf("told of epoch %x", o.DeadEpoch)
		}
	}
}
