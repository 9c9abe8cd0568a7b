package replay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sonde/config"
	"sonde/consumers/detector"
	"sonde/lakehouse"
	"sonde/producer"
	"sonde/recording"
	"sonde/schema"
)

var update = flag.Bool("update", false, "write testdata/verdicts.txt anew")

const (
	goldenDir    = "../../../recording/testdata/golden"
	verdictsFile = "testdata/verdicts.txt"
)

var quiet = slog.New(slog.DiscardHandler)

// bundle is a detector of the arithmetic model, whose rows mean nothing: it alarms
// somewhere.
func bundle(t *testing.T) string {
	t.Helper()
	weight := make([]float32, 16)
	row := make([]byte, 32)
	for i := range weight {
		weight[i] = float32(i%5) - 2
		binary.LittleEndian.PutUint16(row[2*i:], 0x3f80+uint16(i))
	}
	dir := filepath.Join(t.TempDir(), "bundle")
	_, err := detector.Write(dir, detector.Draft{Manifest: detector.Manifest{Name: "any", Version: "1",
		Description: "Is this anything?", Binding: detector.Binding{ModelWeights: detector.Any, Quantisation: detector.Any,
			Adapter: detector.Any, Hook: "resid_post", Layer: 0, DType: "bf16", Width: 16, Phase: detector.PhaseAll},
		Feature: detector.Feature{Kind: "linear"}, Aggregation: detector.Aggregation{Kind: "ema", HalfLife: 3},
		Levels: []detector.Level{{Name: detector.LevelWarn, Threshold: 1, FalseAlarmRate: 0.5},
			{Name: detector.LevelStop, Threshold: 40, FalseAlarmRate: 0.1}}, Limits: detector.Limits{MaxStopRate: 1}},
		Probe: detector.Probe{DType: "bf16", Weight: weight}, Rows: [][]byte{row, row}})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// configOf is a pipeline in a folder of its own that stores every row.
func configOf(dir, bundle string) config.Config {
	c := config.Default()
	c.Bus.Embedded.StoreDir, c.Bus.Embedded.Listen = filepath.Join(dir, "bus"), ""
	c.Agent.DeadLetter.Dir, c.Materializer.DeadLetterDir = filepath.Join(dir, "dead"), filepath.Join(dir, "dead-m")
	c.Materializer.Lake, c.HTTP.Listen = filepath.Join(dir, "lake"), ""
	c.Materializer.CommitIntervalMS, c.Agent.LingerMS = 20, 5
	c.Policy.Rules = []config.Rule{{Name: "all", Hooks: []string{"*"}, Layers: config.Layers{All: true},
		As: "tensor", Stride: 1}}
	c.Detectors = []config.Detector{{Bundle: bundle, Mode: detector.ModeEnforce}}
	return c
}

func open(t *testing.T, dir string) *recording.Recording {
	t.Helper()
	r, err := recording.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func run(t *testing.T, r *recording.Recording, c config.Config, real bool) producer.Counts {
	t.Helper()
	counts, err := Run(t.Context(), r, c, real, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := counts.Balance(); err != nil || counts.InFlight > 0 {
		t.Errorf("the agent counted %+v, %v", counts, err)
	}
	return counts
}

// stored is what a lake holds: the account, and the verdicts.
func stored(t *testing.T, dir string) (rows uint64, open int, verdicts []string) {
	t.Helper()
	lake, err := lakehouse.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	account, err := lake.Account(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := account.Balance(); err != nil {
		t.Errorf("the lake: %v\n%s", err, account)
	}
	err = lake.Detections(t.Context(), lakehouse.Query{}, func(d *schema.DetectionRow) error {
		verdicts = append(verdicts, fmt.Sprintf(
			"%s sample %d position %d: %s %s, score %.4g of %.4g after %d tokens, %s %08x", d.Request, d.Sample, d.Position,
			d.Detector, d.Level, d.Score, d.Threshold, d.TokensSeen, d.Action, math.Float32bits(d.Score)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(verdicts)
	return account.Stored, len(account.OpenEpochs), verdicts
}

// A replay must give the verdicts of the run, bit for bit, at any speed and however
// often; and rows that the lake has are stored once.
func TestReplayGivesTheSameRowsAndVerdictsAtAnySpeed(t *testing.T) {
	r := open(t, goldenDir)
	use := bundle(t)
	var first uint64
	var verdicts []string
	for _, real := range []bool{false, true} {
		c := configOf(t.TempDir(), use)
		counts := run(t, r, c, real)
		rows, open, got := stored(t, c.Materializer.Lake)
		if rows == 0 || rows != counts.Acknowledged || open != 0 {
			t.Errorf("%d rows stored, %d acknowledged, %d open epochs", rows, counts.Acknowledged, open)
		}
		if !real {
			first, verdicts = rows, got
			again := run(t, r, c, false)
			rows, _, repeated := stored(t, c.Materializer.Lake)
			if rows != first || again.Acknowledged != counts.Acknowledged || !slices.Equal(repeated, got) {
				t.Errorf("the second replay left %d rows and %d verdicts; want %d and %d", rows, len(repeated), first, len(got))
			}
		}
		if rows != first || !slices.Equal(got, verdicts) {
			t.Errorf("in real time: %d rows and %q; want %d and %q", rows, got, first, verdicts)
		}
	}
	text := ""
	for _, v := range verdicts {
		text += v[:len(v)-9] + "\n" // the last bits are those of this CPU's kernel
	}
	if *update {
		if err := os.WriteFile(verdictsFile, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(verdictsFile)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) || len(verdicts) < 4 {
		t.Errorf("verdicts are\n%swant\n%swhen the change is meant: go test ./cmd/sonde/replay -update", text, want)
	}
}

// copyOf copies the golden recording without its last bytes.
func copyOf(t *testing.T, cut int) string {
	t.Helper()
	dir := t.TempDir()
	err := filepath.WalkDir(goldenDir, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(goldenDir, path)
		if err != nil || d.IsDir() {
			return errors.Join(err, os.MkdirAll(filepath.Join(dir, rel), 0o755))
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, rel), b[:len(b)-cut], 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// A recording that was cut has no end of its own: the replay must come to one all the
// same, and must not claim that the engine ended.
func TestReplayOfATornRecordingEndsAndLeavesTheEpochOpen(t *testing.T) {
	r := open(t, copyOf(t, 20000))
	if r.Sessions[0].End.Reason != recording.ReasonTorn {
		t.Fatalf("ended as %s", r.Sessions[0].End.Reason)
	}
	c := configOf(t.TempDir(), bundle(t))
	var said bytes.Buffer
	counts, err := Run(t.Context(), r, c, false, slog.New(slog.NewTextHandler(&said, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said.String(), "level=WARN msg=\"the recorder of the session died") {
		t.Errorf("the log does not say that the recording is torn: %s", said.String())
	}
	rows, open, _ := stored(t, c.Materializer.Lake)
	if rows == 0 || rows != counts.Acknowledged || open != 1 {
		t.Errorf("%d rows stored, %d acknowledged, %d open epochs; want 1", rows, counts.Acknowledged, open)
	}
}

func TestInterruptedReplayIsAnError(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	_, err := Run(ctx, open(t, goldenDir), configOf(t.TempDir(), bundle(t)), false, quiet)
	if err == nil {
		t.Error("a replay that was stopped is complete")
	}
}

func TestDescriptionSaysWhatARecordingHolds(t *testing.T) {
	var b strings.Builder
	for _, cut := range []int{0, 20000} {
		if err := Describe(&b, open(t, copyOf(t, cut))); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{`engine    "golden", rank 0 of 1`, "22 step", "the engine said goodbye",
		"torn: the recorder died", "bytes of a record that was not written to its end", "73.3 KiB in 1 segments"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, b.String())
		}
	}
}
