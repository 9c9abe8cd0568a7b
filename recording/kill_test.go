package recording

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sonde/ring2"
)

// The test binary is its own recorder, in a process that can be killed.
const (
	socketVariable = "RECORDING_TEST_SOCKET"
	folderVariable = "RECORDING_TEST_FOLDER"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv(socketVariable); socket != "" {
		recordForEver(socket, os.Getenv(folderVariable))
		return
	}
	os.Exit(m.Run())
}

func recordForEver(socket, dir string) {
	r, err := NewRecorder(dir, Options{SegmentBytes: minSegmentBytes}, quiet)
	if err != nil {
		panic(err)
	}
	l, err := ring2.Listen(socket, ring2.ListenerOptions{Logger: quiet})
	if err != nil {
		panic(err)
	}
	if err := r.Run(context.Background(), l); err != nil {
		panic(err)
	}
}

// spawn starts a recorder in a process of its own.
func spawn(t *testing.T, socket, dir string) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), socketVariable+"="+socket, folderVariable+"="+dir)
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	return c
}

// rankWriter is an engine's rank that waits for its reader rather than drop.
func rankWriter(t *testing.T, socket string, rank int) (w *ring2.Writer, layout uint32) {
	t.Helper()
	w, err := ring2.NewWriter(ring2.WriterOptions{Socket: socket, EngineInstance: "e", Rank: rank, RankCount: 2,
		DescCount: 64, DataBytes: 256 << 10, Mode: ring2.Complete, StepStallBudget: 20 * time.Second, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	layout, err = w.DefineLayout([]ring2.LayoutEntry{{Hook: "h", Layer: 0, DType: ring2.U8, Shape: []uint32{500}}})
	if err == nil {
		err = w.OpenRequest(ring2.RequestOpen{Number: 1})
	}
	if err != nil {
		t.Fatal(err)
	}
	return w, layout
}

func writeSteps(t *testing.T, w *ring2.Writer, layout uint32, n int) {
	for range n {
		s, err := w.BeginStep([]ring2.StepRange{{Number: 1, Count: 1, LayoutMask: 1}}, []uint32{layout})
		if err != nil {
			t.Error(err)
			return
		}
		for i := range s.Span(0, 0) {
			s.Span(0, 0)[i] = byte(s.Step())
		}
		s.Commit()
	}
}

// wholeOf reads all sessions of a rank and checks that they hold every record. Those
// that a recorder had synced and not released when it was killed are there twice.
func wholeOf(t *testing.T, dir string, rank uint32, steps uint64) (sessions int) {
	t.Helper()
	var next, seen uint64
	for _, s := range mustOpen(t, dir).Sessions {
		if s.Start.Ring.Rank != rank {
			continue
		}
		sessions++
		records, _, _ := readAll(t, s)
		for i := range records {
			r := &records[i]
			if r.Seq > next {
				t.Fatalf("rank %d: record %d follows record %d", rank, r.Seq, next-1)
			}
			again := r.Seq < next
			next = max(next, r.Seq+1)
			if again || r.Kind != ring2.KindCapture {
				continue
			}
			seen++
			for _, b := range r.Payload[:500] {
				if b != byte(r.Step) {
					t.Fatalf("rank %d: the capture of step %d holds %d", rank, r.Step, b)
				}
			}
		}
	}
	if seen != steps {
		t.Errorf("rank %d: %d captures; want %d", rank, seen, steps)
	}
	return sessions
}

// What a recorder has released is gone from the ring: if it is killed then, it must
// be on the disk, and the next recorder must go on with the record behind it.
func TestKilledRecorderLosesNothing(t *testing.T) {
	dir, socket := filepath.Join(t.TempDir(), "recording"), filepath.Join(t.TempDir(), "s")
	w, layout := rankWriter(t, socket, 0)
	const kills, steps = 4, 400
	written := make(chan struct{})
	go func() {
		defer close(written)
		writeSteps(t, w, layout, kills*steps)
	}()
	for i := range kills - 1 {
		c := spawn(t, socket, dir)
		for w.Stats().Release < uint64(2*steps*(i+1)) && t.Context().Err() == nil && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
	}
	c := spawn(t, socket, dir)
	<-written
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.Close(ctx); err != nil {
		t.Fatal(err)
	}
	waitForEnd(t, dir)
	_ = c.Process.Kill()
	_ = c.Wait()
	if n := wholeOf(t, dir, 0, kills*steps); n != kills {
		t.Errorf("%d sessions; want %d", n, kills)
	}
	recording := mustOpen(t, dir)
	for i, s := range recording.Sessions {
		want := ReasonTorn
		if i == kills-1 {
			want = ReasonEnded
		}
		if s.End.Reason != want {
			t.Errorf("session %d ended as %s; want %s", i, s.End.Reason, want)
		}
	}
}

// waitForEnd waits until a session ends with its engine.
func waitForEnd(t *testing.T, dir string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		r, err := Open(dir)
		if err != nil {
			continue // the recorder is writing
		}
		for _, s := range r.Sessions {
			if s.End.Reason == ReasonEnded {
				return
			}
		}
	}
	t.Fatal("no session ended with its engine")
}

// One rank that comes, goes or is slow must not keep the others from being recorded,
// and a stop ends all of them in order.
func TestRunRecordsEveryRankUntilItIsStopped(t *testing.T) {
	dir, socket := t.TempDir(), filepath.Join(t.TempDir(), "s")
	l, err := ring2.Listen(socket, ring2.ListenerOptions{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, err := NewRecorder(dir, Options{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, l) }()
	var writers [2]*ring2.Writer
	for rank := range writers {
		w, layout := rankWriter(t, socket, rank)
		writers[rank] = w
		writeSteps(t, w, layout, 100)
	}
	for _, w := range writers {
		for s := w.Stats(); s.Release != s.Claim && t.Context().Err() == nil; s = w.Stats() {
			time.Sleep(time.Millisecond)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := r.Totals(); got.Sessions != 2 || got.Records != 2*202 {
		t.Errorf("totals %+v", got)
	}
	for rank, w := range writers {
		wholeOf(t, dir, uint32(rank), 100)
		done, cancel := context.WithCancel(context.Background())
		cancel()
		_ = w.Close(done) // nobody reads its goodbye
	}
	for _, s := range mustOpen(t, dir).Sessions {
		if s.End.Reason != ReasonStopped {
			t.Errorf("ended as %s", s.End.Reason)
		}
	}
}
