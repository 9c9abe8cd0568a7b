package materializer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"sonde/bus/bustest"
	"sonde/lakehouse"
)

// The child process materializes a stream that follows from a seed, and ends when
// everything is committed. Its bus dies with it, as the position in the table must
// not.
const (
	childLake = "SONDE_TEST_MATERIALIZER_LAKE"
	childSeed = "SONDE_TEST_MATERIALIZER_SEED"
)

func TestMain(m *testing.M) {
	if lake := os.Getenv(childLake); lake != "" {
		if err := child(lake, os.Getenv(childSeed)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func streamOf(seed uint64) ([]*source, [][]byte) {
	r := rand.New(rand.NewPCG(seed, 2))
	sources := newSources(r, 1, 120)
	return sources, shuffled(r, sources, false)
}

func child(lake, seedText string) error {
	seed, err := strconv.ParseUint(seedText, 10, 64)
	if err != nil {
		return err
	}
	_, messages := streamOf(seed)
	b := bustest.New()
	if err := publishAll(b, messages); err != nil {
		return err
	}
	o := options(b, lake)
	o.CommitBytes = 12 << 10
	m, err := New(o)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		for m.Committed(0).Next <= uint64(len(messages)) {
			time.Sleep(time.Millisecond)
		}
		stop()
	}()
	return m.Run(ctx)
}

func TestKillAtAnyMomentRepeatsAndLosesNothing(t *testing.T) {
	const kills = 36
	r := newRandom(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	killed, finished := 0, 0
	for killed < kills {
		lake, seed := t.TempDir(), r.Uint64()
		sources, _ := streamOf(seed)
		for done := false; !done; {
			cmd := exec.Command(program)
			cmd.Env = append(os.Environ(), childLake+"="+lake, childSeed+"="+fmt.Sprint(seed))
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			pause := time.Duration(20+r.IntN(80)) * time.Millisecond
			if killed >= kills {
				pause = time.Hour
			}
			select {
			case err := <-ended:
				if err != nil {
					t.Fatalf("the materializer failed: %v", err)
				}
				done = true
			case <-time.After(pause):
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				<-ended
				killed++
				checkReadable(t, lake)
			}
		}
		finished++
		checkStored(t, lake, sources)
	}
	t.Logf("%d kills over %d lakes", killed, finished)
}

// checkReadable fails when a lake that was just left alone cannot be read, or holds
// a row twice.
func checkReadable(t *testing.T, lake string) {
	t.Helper()
	if _, err := lakehouse.Open(lake); errors.Is(err, lakehouse.ErrNoLake) {
		return // died before its first claim
	}
	stored(t, lake)
}
