package ring2

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// fakeAgent is an agent's end that obeys no rule.
type fakeAgent struct {
	listener *net.UnixListener
	socket   string
}

func newFakeAgent(t *testing.T) *fakeAgent {
	t.Helper()
	a := &fakeAgent{socket: filepath.Join(t.TempDir(), "s")}
	var err error
	a.listener, err = net.ListenUnix(socketNetwork, &net.UnixAddr{Name: a.socket, Net: socketNetwork})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.listener.Close() })
	return a
}

func (a *fakeAgent) writer(t *testing.T) (*Writer, uint32) {
	t.Helper()
	w, err := NewWriter(WriterOptions{Socket: a.socket, DescCount: 16, DataBytes: minDataBytes,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // nobody will release anything
		_ = w.Close(ctx)
	})
	layout, err := w.DefineLayout(peerLayout.Entries)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.OpenRequest(RequestOpen{Number: 1, Tenant: "t"}); err != nil {
		t.Fatal(err)
	}
	return w, layout
}

// accept takes one connection and its HELLO.
func (a *fakeAgent) accept(t *testing.T) (*net.UnixConn, message) {
	t.Helper()
	if err := a.listener.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	c, err := a.listener.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	m, err := receiveMessage(c, make([]byte, abiMessageMaxBytes))
	if err != nil || m.typ != abiMessageHello {
		t.Fatalf("the engine says %s, %v", m.name(), err)
	}
	return c, m
}

// capture does one step of one token.
func capture(t *testing.T, w *Writer, layout uint32, position int) {
	t.Helper()
	s, err := w.BeginStep([]StepRange{{Number: 1, Position: uint32(position), Count: 1, LayoutMask: 1}}, []uint32{layout})
	if err != nil {
		t.Fatal(err)
	}
	for e := range peerLayout.Entries {
		copy(s.Span(0, e), peerRow(peerLayout.Entries[e].Hook, position))
	}
	s.Commit()
}

// An agent that writes anything into its zone loses its own data; the engine goes
// on, and every row is either claimed or counted as dropped.
func TestAScribblingAgentDoesNotHarmTheEngine(t *testing.T) {
	rng := seeded(t)
	a := newFakeAgent(t)
	w, layout := a.writer(t)
	conn, m := a.accept(t)
	memory, err := mapPeer(m.fds, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer memory.close()
	if err := sendMessage(conn, welcomeMessage("fake")); err != nil {
		t.Fatal(err)
	}
	r, err := ringOn(memory.ctl, memory.consumer, memory.data, 16)
	if err != nil {
		t.Fatal(err)
	}
	for position := range 3000 {
		claim := atomic.LoadUint64(&r.producer.ClaimSeq)
		word := rng.Uint64()
		switch rng.IntN(4) {
		case 0:
			word = claim - word%20
		case 1:
			word = claim + word%20
		case 2:
			word = claim
		}
		atomic.StoreUint64(&r.consumer.ReleaseSeq, word)
		atomic.StoreUint32(&r.consumer.NeedWakeup, rng.Uint32()%3)
		capture(t, w, layout, position)
	}
	s := w.Stats()
	dropped := uint64(0)
	for _, n := range s.DroppedRows {
		dropped += n
	}
	if s.Steps != 3000 || s.CapturedRows != 6000 || dropped >= 6000 || s.RefusedReleases == 0 || s.Release > s.Claim {
		t.Errorf("counters are %+v", s)
	}
}

// Whatever an agent answers, the engine captures on, dials again and leaves
// nothing open.
func TestAnAgentThatAnswersNonsenseIsDialedAgain(t *testing.T) {
	other := welcomeMessage("x")
	other[abiMessageABIMajorOff]++
	fds := pipes(t, 3)
	for name, answer := range map[string]func(c *net.UnixConn){
		"nothing and hangs up":       func(*net.UnixConn) {},
		"noise":                      func(c *net.UnixConn) { _, _ = c.Write([]byte("noise")) },
		"a HELLO":                    func(c *net.UnixConn) { _ = sendMessage(c, helloMessage("x"), fds...) },
		"a WELCOME with descriptors": func(c *net.UnixConn) { _ = sendMessage(c, welcomeMessage("x"), fds[:2]...) },
		"another major version":      func(c *net.UnixConn) { _ = sendMessage(c, other) },
		"a WELCOME and then another": func(c *net.UnixConn) {
			_ = sendMessage(c, welcomeMessage("x"))
			_ = sendMessage(c, welcomeMessage("x"))
		},
		"a WELCOME and then half an ABORT": func(c *net.UnixConn) {
			_ = sendMessage(c, welcomeMessage("x"))
			_ = sendMessage(c, sealMessage(newMessage(abiMessageAbort, 0)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newFakeAgent(t)
			w, layout := a.writer(t)
			conn, m := a.accept(t)
			m.closeFDs()
			before := openDescriptors(t)
			for position := range 3 {
				answer(conn)
				_ = conn.CloseWrite()
				capture(t, w, layout, position)
				_ = conn.Close()
				conn, m = a.accept(t)
				m.closeFDs()
			}
			settles(t, before)
			if s := w.Stats(); s.Steps != 3 || s.CapturedRows != 6 {
				t.Errorf("counters are %+v", s)
			}
		})
	}
}

// An agent that asks for aborts and never reads the answers must not hold up a
// step.
func TestAnAgentThatFloodsAbortsDoesNotStopCapture(t *testing.T) {
	a := newFakeAgent(t)
	w, layout := a.writer(t)
	conn, m := a.accept(t)
	m.closeFDs()
	if err := sendMessage(conn, welcomeMessage("x")); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sendMessage(conn, abortMessage(sampleAbort)) == nil {
		}
	}()
	for position := range 200 {
		capture(t, w, layout, position)
		time.Sleep(time.Millisecond)
	}
	_ = conn.Close()
	<-done
	if s := w.Stats(); s.Steps != 200 {
		t.Errorf("counters are %+v", s)
	}
}
