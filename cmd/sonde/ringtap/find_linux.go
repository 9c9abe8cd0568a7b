// Package ringtap shows what happens in the ring of an engine to somebody who is
// neither the engine nor the agent. It finds the ring's memory in /proc, maps it
// for reading, and cannot be noticed by either side: it works while the agent
// hangs.
package ringtap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"sonde/ring2"
)

// maxRings bounds the rings that are looked at; more are not searched for.
const maxRings = 256

// Ring is the ring of one rank of an engine that runs on this machine.
type Ring struct {
	PID     int
	Command string
	*ring2.Peek
	known   *catalogue
	journal string // in /proc, or empty
}

// Find looks for rings in the processes that this user may look into; pid 0 means
// all of them. The caller closes what it gets.
func Find(pid int) ([]*Ring, error) {
	pids := []int{pid}
	if pid == 0 {
		var err error
		if pids, err = processes(); err != nil {
			return nil, err
		}
	}
	var found []*Ring
	var denied int
	for _, pid := range pids {
		rings, err := ringsOf(pid)
		switch {
		case errors.Is(err, fs.ErrPermission):
			denied++
		case err != nil && len(pids) == 1:
			return nil, fmt.Errorf("look into process %d: %w", pid, err)
		}
		for _, r := range rings {
			same := func(o *Ring) bool { return o.Config().Epoch == r.Config().Epoch }
			if len(found) >= maxRings || slices.ContainsFunc(found, same) { // a child of the engine has its descriptors, too
				r.Close()
				continue
			}
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		hint := "start an engine, or name its process with --pid"
		if denied > 0 {
			hint = fmt.Sprintf("%d processes belong to others: run as the user of the engine", denied)
		}
		return nil, fmt.Errorf("find a ring: no process that can be looked into has one; %s", hint)
	}
	return found, nil
}

func processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("find a ring: %w", err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// journalLink is where the descriptor of a journal's segment links to.
var journalLink = regexp.MustCompile(`/rank\d+-([0-9a-f]{16})/\d{8}$`)

// descriptors are those of a process that belong to rings.
type descriptors struct {
	ctl, data []int
	journals  map[string]string // by epoch, as 16 hex digits
}

func descriptorsOf(pid int) (descriptors, error) {
	d := descriptors{journals: map[string]string{}}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return d, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		link, err := os.Readlink(path)
		fd, notNumber := strconv.Atoi(e.Name())
		if err != nil || notNumber != nil {
			continue // closed meanwhile
		}
		switch m := journalLink.FindStringSubmatch(link); {
		case link == ring2.MemoryLinkCtl:
			d.ctl = append(d.ctl, fd)
		case link == ring2.MemoryLinkData:
			d.data = append(d.data, fd)
		case m != nil:
			d.journals[m[1]] = path
		}
	}
	slices.Sort(d.ctl)
	slices.Sort(d.data)
	return d, nil
}

func ringsOf(pid int) ([]*Ring, error) {
	d, err := descriptorsOf(pid)
	if err != nil {
		return nil, err
	}
	var out []*Ring
	for _, ctl := range d.ctl {
		peek := d.open(pid, ctl)
		if peek == nil {
			continue
		}
		r := &Ring{PID: pid, Command: commandOf(pid), Peek: peek, known: newCatalogue()}
		r.journal = d.journals[fmt.Sprintf("%016x", peek.Config().Epoch)]
		out = append(out, r)
	}
	return out, nil
}

// open maps a ring. Its data memfd was made right after its ctl memfd; of those
// with the right size, the next one is it, unless its contents say otherwise.
func (d *descriptors) open(pid, ctl int) *ring2.Peek {
	at, _ := slices.BinarySearch(d.data, ctl)
	for _, data := range slices.Concat(d.data[at:], d.data[:at]) {
		p, err := openPair(pid, ctl, data)
		if err != nil {
			continue
		}
		if plausible(p) {
			return p
		}
		p.Close()
	}
	return nil
}

func openPair(pid, ctl, data int) (*ring2.Peek, error) {
	c, err := os.Open(fmt.Sprintf("/proc/%d/fd/%d", pid, ctl))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	d, err := os.Open(fmt.Sprintf("/proc/%d/fd/%d", pid, data))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return ring2.MapPeek(c, d)
}

// plausible says whether the data belong to the descriptors: of the newest control
// records, whose payloads have checksums, one must fit.
func plausible(p *ring2.Peek) bool {
	claim, seen := p.State().Claim, 0
	for seq := claim; seq != first(p, claim) && seen < 8; {
		seq--
		g, sight := p.Look(seq)
		if sight != ring2.SightWhole || g.Flags&ring2.FlagPayloadCRC == 0 || g.Bytes == 0 {
			continue
		}
		if _, sight = p.Payload(&g, nil); sight == ring2.SightWhole {
			return true
		}
		seen++
	}
	return seen == 0
}

// first is the oldest record whose descriptor the ring may still hold.
func first(p *ring2.Peek, claim uint64) uint64 { return claim - min(claim, p.Config().DescCount) }

func commandOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}
