package edges

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Somebody opens connections without end until the agent has no file descriptor left:
// ranks that are attached go on, the log stays readable, and all is well afterwards.
func TestRunningOutOfFileDescriptorsStopsNoRankThatIsAttached(t *testing.T) {
	t.Parallel()
	r := newRig(t, setup{})
	r.start()
	r.startEngine()
	stop := r.load()
	r.await("rows in the lake", func() bool { return r.stored() > 300 })
	// Go reads metrics over connections that are open already: what is left is for the
	// flood alone.
	open, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(r.run.PID()), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	var before unix.Rlimit
	if err := unix.Prlimit(r.run.PID(), unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	few := before
	few.Cur = uint64(len(open) + 12)
	if err := unix.Prlimit(r.run.PID(), unix.RLIMIT_NOFILE, &few, nil); err != nil {
		t.Fatal(err)
	}
	acknowledged, lines := r.acknowledged(), r.lines("\n")
	end := flood(r.socket)
	began := time.Now()
	r.await("a log that says what is short", func() bool { return r.lines("too many open files") > 0 })
	r.await("rows on the bus", func() bool { return r.acknowledged() > acknowledged+500 })
	seconds := int(time.Since(began).Seconds()) + 1
	if n := r.lines("\n") - lines; n > 8*seconds {
		t.Errorf("%d lines of log in %d s:\n%s", n, seconds, tail(r.log("run"), 4000))
	}
	dials := end()
	if dials < 200 {
		t.Errorf("only %d connections were opened: that is no flood", dials)
	}
	stored := r.stored()
	r.await("rows in the lake again", func() bool { return r.stored() > stored+300 })
	r.await("ready pipeline", func() bool { return r.ready() == "ready\n" })
	if m := r.agent(); m["sonde_producer_ranks"] != 1 || m["sonde_producer_attached_total"] != 1 {
		t.Errorf("%v ranks, attached %v times: the rank was cut off", m["sonde_producer_ranks"],
			m["sonde_producer_attached_total"])
	}
	stop()
	// The next engine must find the agent, too.
	if err := r.engine.Stop(patience); err != nil {
		t.Fatal(err)
	}
	r.startEngine()
	acknowledged = r.acknowledged()
	stop = r.load()
	r.await("rows of the next engine", func() bool { return r.acknowledged() > acknowledged+200 })
	stop()
	a := r.judge()
	t.Logf("%d connections\n%v", dials, a)
}

// flood opens connections and keeps them until end is called, which says how many.
func flood(socket string) (end func() int) {
	stop, dials := make(chan struct{}), 0
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			var held []net.Conn
			defer func() {
				for _, c := range held {
					_ = c.Close() // The agent may have closed it.
				}
			}()
			for {
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Millisecond):
				}
				c, err := net.DialTimeout("unixpacket", socket, time.Second)
				if err != nil {
					continue
				}
				mu.Lock()
				dials++
				mu.Unlock()
				if held = append(held, c); len(held) > 256 {
					_ = held[0].Close() // Likewise.
					held = held[1:]
				}
			}
		})
	}
	return func() int { close(stop); all.Wait(); return dials }
}
