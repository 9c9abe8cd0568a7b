package ring2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// peerRun is a run of testdata/peer/peer.c against a listener.
type peerRun struct {
	listener *Listener
	socket   string
	command  *exec.Cmd
	stderr   bytes.Buffer
}

// patience is a context that ends when a test would otherwise hang.
func patience(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func startPeer(t *testing.T, o ListenerOptions, steps string) *peerRun {
	t.Helper()
	binary := buildC(t, "gcc", "c11", "testdata/peer/peer.c")
	p := &peerRun{socket: filepath.Join(t.TempDir(), "s")}
	o.Name = "test"
	var err error
	if p.listener, err = Listen(p.socket, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.listener.Close() })
	p.command = exec.Command(binary, p.socket, "acme", "req-7", steps)
	p.command.Stderr = &p.stderr
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.command.Process.Kill() })
	return p
}

func (p *peerRun) accept(t *testing.T) *Session {
	t.Helper()
	s, err := p.listener.Accept(patience(t))
	if err != nil {
		t.Fatalf("%v; the peer says %s", err, p.stderr.String())
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// exitCode waits for the peer's end.
func (p *peerRun) exitCode(t *testing.T) int {
	t.Helper()
	kill := time.AfterFunc(20*time.Second, func() { _ = p.command.Process.Kill() })
	defer kill.Stop()
	err := p.command.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.command.ProcessState.ExitCode()
}

// drain reads and releases until the peer is gone. between is called after every
// batch that does not end the stream.
func drain(t *testing.T, s *Session, between func(records int)) []Record {
	t.Helper()
	ctx := patience(t)
	var all, batch []Record
	for {
		var err error
		batch, err = s.Next(ctx, batch[:0])
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("after %d records: %v", len(all), err)
		}
		all = append(all, cloneRecords(batch)...)
		s.Release(batch[len(batch)-1].Seq + 1)
		if between != nil {
			between(len(all))
		}
	}
}

// Whoever has only ABI.md can write an engine whose every row arrives.
func TestAStrangersEngineInCIsUnderstood(t *testing.T) {
	const steps = 60 // several laps of 16 descriptors and of 4096 bytes
	p := startPeer(t, ListenerOptions{}, "60")
	s := p.accept(t)
	if c := s.Config(); c.Epoch == 0 || c.EngineInstance != "stranger-0" || c.DescCount != 16 || c.RankCount != 1 ||
		int(c.ProducerPID) != p.command.Process.Pid || len(s.Snapshot()) != 0 {
		t.Errorf("config is %+v, with a snapshot of %d records", c, len(s.Snapshot()))
	}
	aborted := false
	records := drain(t, s, func(int) {
		if aborted {
			return
		}
		aborted = true
		outcome, length, err := s.Abort(patience(t), Abort{Epoch: s.Config().Epoch, Number: 1})
		if err != nil && !errors.Is(err, ErrEngineGone) || outcome != AbortUnknown || length != 0 {
			t.Errorf("abort gives %s, %d, %v", outcome, length, err)
		}
	})
	checkPeerRecords(t, records, "acme", "req-7", steps)
	want := ProducerCounters{CapturedRows: 3*steps + 2*(peerPrompt-1), Steps: steps, Closing: true}
	if got := s.Producer(); got != want {
		t.Errorf("counters are %+v, want %+v", got, want)
	}
	if lost := s.Lost(); len(lost) > 0 {
		t.Errorf("records %v are lost", lost)
	}
	if code := p.exitCode(t); code != 0 {
		t.Errorf("the peer exits with %d: %s", code, p.stderr.String())
	}
}

func TestAKilledEngineLeavesAPrefixOfWhatItSaid(t *testing.T) {
	p := startPeer(t, ListenerOptions{}, "1000000000")
	s := p.accept(t)
	killed := false
	records := drain(t, s, func(n int) {
		if n > 500 && !killed {
			killed = true
			if err := p.command.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	})
	if !killed || p.exitCode(t) != -1 {
		t.Fatalf("the peer ended by itself after %d records: %s", len(records), p.stderr.String())
	}
	steps := uint64(0)
	for i := 3; i+1 < len(records) && records[i+1].Seq == records[i].Seq+1; i += 2 {
		checkPeerStep(t, records[i], records[i+1], steps)
		steps++
	}
	if p := s.Producer(); steps < 240 || p.Steps < steps || p.Steps > steps+1 || p.Closing {
		t.Errorf("read %d steps; the counters say %+v", steps, p)
	}
	if lost := s.Lost(); len(lost) > 2 {
		t.Errorf("records %v are lost, of one step", lost)
	}
}

func TestAnEngineLearnsThatItsAgentIsGone(t *testing.T) {
	p := startPeer(t, ListenerOptions{}, "1000000000")
	s := p.accept(t)
	if _, err := s.Next(patience(t), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if code := p.exitCode(t); code != 3 {
		t.Errorf("the peer exits with %d, want 3: %s", code, p.stderr.String())
	}
}

func TestARefusedEngineGetsASentence(t *testing.T) {
	p := startPeer(t, ListenerOptions{MaxRingBytes: 1 << 17}, "1")
	if code := p.exitCode(t); code != 3 || !strings.Contains(p.stderr.String(), "at most 131072 together") {
		t.Errorf("the peer exits with %d and says %q", code, p.stderr.String())
	}
}
