package faultproxy

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"
)

// echo is a server that sends back what it gets, and closes when its client does.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func start(t *testing.T, target string) *Proxy {
	t.Helper()
	p, err := Listen("127.0.0.1:0", target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func dial(t *testing.T, p *Proxy) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// say writes a word and reads it back.
func say(c *net.TCPConn, word string) (string, error) {
	if _, err := c.Write([]byte(word)); err != nil {
		return "", err
	}
	return hear(c, len(word), 10*time.Second)
}

func hear(c *net.TCPConn, n int, limit time.Duration) (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	buf := make([]byte, n)
	got, err := io.ReadFull(c, buf)
	return string(buf[:got]), err
}

func mustSay(t *testing.T, c *net.TCPConn, word string) {
	t.Helper()
	if got, err := say(c, word); got != word || err != nil {
		t.Fatalf("said %q, heard %q, %v", word, got, err)
	}
}

func TestAProxyWithoutAFaultChangesNothing(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	sent := make([]byte, 3<<20)
	for i := range sent {
		sent[i] = byte(r.Uint32())
	}
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Errorf("%d of %d bytes came back, or others: %v", len(got), len(sent), err)
	}
}

func TestAResetIsNoOrderlyEnd(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	mustSay(t, c, "hello")
	p.Reset()
	if _, err := hear(c, 1, 10*time.Second); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a RST: %v", err)
	}
	c = dial(t, p)
	mustSay(t, c, "again")
	p.Finish()
	if _, err := hear(c, 1, 10*time.Second); !errors.Is(err, io.EOF) {
		t.Errorf("after a FIN: %v", err)
	}
}

func TestARefusingProxyLetsNobodyInUntilItAdmits(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	mustSay(t, c, "hello")
	p.Refuse()
	if _, err := hear(c, 1, 10*time.Second); err == nil {
		t.Error("an old connection survived")
	}
	if _, err := net.Dial("tcp", p.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection: %v", err)
	}
	if err := p.Admit(); err != nil {
		t.Fatal(err)
	}
	mustSay(t, dial(t, p), "again")
}

// A network that comes back delivers what it held, in order.
func TestWhatIsHeldArrivesAfterwards(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	mustSay(t, c, "hello")
	p.Set(Fault{Up: Hold, Down: Hold})
	if _, err := c.Write([]byte("late")); err != nil {
		t.Fatal(err)
	}
	if got, err := hear(c, 4, 50*time.Millisecond); err == nil {
		t.Fatalf("heard %q through a held connection", got)
	}
	p.Clear()
	if got, err := hear(c, 4, 10*time.Second); got != "late" || err != nil {
		t.Errorf("heard %q, %v", got, err)
	}
}

// A connection whose other end died without a word stays silent for ever, also when the
// network is well again: later bytes must not follow a gap.
func TestASwallowedConnectionNeverSpeaksAgain(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	mustSay(t, c, "hello")
	p.Set(Fault{Up: Swallow, Down: Swallow})
	if _, err := c.Write([]byte("gone")); err != nil {
		t.Fatal(err)
	}
	if got, err := hear(c, 4, 50*time.Millisecond); err == nil {
		t.Fatalf("heard %q", got)
	}
	p.Clear()
	if _, err := c.Write([]byte("more")); err != nil {
		t.Fatal(err)
	}
	if got, err := hear(c, 1, 100*time.Millisecond); err == nil {
		t.Errorf("heard %q behind a gap", got)
	}
	mustSay(t, dial(t, p), "a new one")
}

func TestACutComesAtItsByte(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	mustSay(t, c, "hello")
	p.Set(Fault{Up: Harm, CutAfter: 5})
	if _, err := c.Write([]byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	got, err := hear(c, 10, 10*time.Second)
	if err == nil || len(got) > 5 || got != "01234"[:len(got)] {
		t.Errorf("heard %q, %v", got, err)
	}
}

func TestOneBitOfSoManyBytesIsTurned(t *testing.T) {
	p := start(t, echo(t))
	c := dial(t, p)
	p.Set(Fault{Up: Harm, CorruptEvery: 100})
	sent := bytes.Repeat([]byte{0}, 1000)
	if _, err := c.Write(sent); err != nil {
		t.Fatal(err)
	}
	got, err := hear(c, len(sent), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	wrong := 0
	for _, b := range []byte(got) {
		if b != 0 {
			wrong++
		}
	}
	if wrong != 10 || p.Corrupted() != 10 {
		t.Errorf("%d bytes are wrong, and %d were counted", wrong, p.Corrupted())
	}
	p.Clear()
	mustSay(t, c, "well again")
}

func TestASlowConnectionLosesNothing(t *testing.T) {
	p := start(t, echo(t))
	for _, f := range []Fault{{Up: Harm, Down: Harm, Delay: 5 * time.Millisecond}, {Up: Harm, BytesPerSecond: 20_000}} {
		c := dial(t, p)
		p.Set(f)
		word := string(bytes.Repeat([]byte("slow "), 1000))
		mustSay(t, c, word)
		p.Clear()
		mustSay(t, c, word)
	}
}

func TestAClientBeforeItsServerIsReset(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	p := start(t, nobody)
	if c, err := net.Dial("tcp", p.Address()); err == nil { // else it was reset sooner
		if _, err := say(c.(*net.TCPConn), "hello"); err == nil {
			t.Error("somebody answered")
		}
		c.Close()
	}
	p.Retarget(echo(t))
	mustSay(t, dial(t, p), "hello")
}
