package recording

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"sonde/bus/bustest"
	"sonde/ring2"
)

// The golden recording is a run of the arithmetic engine that is checked in. Its
// digests are those of everything that the agent and the lake make of it, so that
// no change downstream of the ring goes unnoticed. When one is meant, -update
// writes them anew; without a recording it also makes one.
var update = flag.Bool("update", false, "write testdata/golden.txt anew")

const (
	goldenDir     = "testdata/golden"
	goldenDigests = "testdata/golden.txt"
	goldenMost    = 200 << 10 // bytes
)

func TestGoldenRecording(t *testing.T) {
	if !*update || hasGolden() {
		checkGolden(t)
		return
	}
	live(t, goldenRequests, nil, func(s *ring2.Session) {
		r, err := NewRecorder(goldenDir, Options{Recorder: "golden"}, quiet)
		if err != nil {
			t.Error(err)
			return
		}
		defer r.Close()
		if err := r.Record(t.Context(), s); err != nil {
			t.Error(err)
		}
	})
	if err := os.Remove(filepath.Join(goldenDir, lockName)); err != nil {
		t.Error(err)
	}
	checkGolden(t)
}

func hasGolden() bool {
	_, err := os.Stat(goldenDir)
	return err == nil
}

func checkGolden(t *testing.T) {
	recording := mustOpen(t, goldenDir)
	session := recording.Sessions[0]
	if session.Bytes > goldenMost || session.End.Reason != ReasonEnded || session.Records[ring2.KindBye] != 1 ||
		session.Records[ring2.KindCapture] < 20 {
		t.Errorf("the golden recording is %+v; want a whole one of at most %d bytes", session, goldenMost)
	}
	reader, err := session.Read(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := bustest.New()
	defer b.Close()
	counted := attach(t, b, reader)
	if err := counted.Total.Balance(); err != nil || counted.Total.InFlight > 0 {
		t.Errorf("the agent counted %+v, %v", counted.Total, err)
	}
	got := "What the agent publishes:\n" + messagesOf(b) + "\nIts rows, however they are batched:\n" + rowsOf(t, b) +
		"\nThe tables of the lake:\n" + lakeOf(t, b)
	if *update {
		mustWrite(t, goldenDigests, []byte(got))
	}
	want := string(mustRead(t, goldenDigests))
	if got != want {
		t.Errorf("got\n%swant\n%swhen the change is meant: go test ./recording -run Golden -update", got, want)
	}
}
