package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sonde/bus"
	"sonde/config"
	"sonde/lakehouse/commitlog"
)

// The lake has no bound: it is warned about when so little is left.
const lakeRoom = 4 << 30

// place is a folder that the configuration names, and what it may grow by.
type place struct {
	key, dir string
	need     uint64 // bytes
	measure  bool   // what is written here is waited for
	existing string // the folder, or the nearest one above it
	device   uint64
}

// folders looks at every folder: may it be written, is there room for what the
// configuration lets it hold, together with its neighbours on the same disk, and how
// fast is the disk.
func folders(c *config.Config) []Finding {
	places := []place{
		{key: "materializer.lake", dir: c.Materializer.Lake, need: lakeRoom, measure: true},
		{key: "agent.dead_letter.dir", dir: c.Agent.DeadLetter.Dir, need: uint64(c.Agent.DeadLetter.MaxBytes)},
		{key: "materializer.dead_letter_dir", dir: c.Materializer.DeadLetterDir}}
	if dir := c.Agent.SpoolDir(); dir != "" {
		places = append(places, place{key: "agent.spool.dir", dir: dir, need: uint64(c.Agent.Spool.MaxBytes)})
	}
	if c.Bus.UsesEmbedded() {
		e := &c.Bus.Embedded
		places = append([]place{{key: "bus.embedded.store_dir", dir: e.StoreDir, need: uint64(e.MaxBytes), measure: true}},
			places...)
	}
	var out []Finding
	disks := map[uint64][]place{}
	var order []uint64
	for _, p := range places {
		if f := p.look(); f != nil {
			out = append(out, *f)
			continue
		}
		if disks[p.device] == nil {
			order = append(order, p.device)
		}
		disks[p.device] = append(disks[p.device], p)
	}
	for _, d := range order {
		out = append(out, disk(disks[d], c.Bus.UsesEmbedded() && c.Bus.Embedded.Sync == "always")...)
	}
	return out
}

// look finds the disk of a place; a finding is why it cannot be used.
func (p *place) look() *Finding {
	fail := func(found string) *Finding {
		return &Finding{Fail, "disk", found, "set " + p.key + " to a folder of yours"}
	}
	var err error
	if p.existing, err = nearest(p.dir); err != nil {
		return fail(err.Error())
	}
	if !writable(p.existing) {
		return fail(p.existing + " is not writable for this user")
	}
	var st unix.Stat_t
	if err := unix.Stat(p.existing, &st); err != nil {
		return fail(fmt.Sprintf("look at %s: %v", p.existing, err))
	}
	p.device = st.Dev
	if p.existing == filepath.Clean(p.dir) {
		p.need -= min(p.need, sizeOf(p.dir))
	}
	return nil
}

// nearest is the folder, or the nearest one above it that exists.
func nearest(dir string) (string, error) {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		switch {
		case err == nil && info.IsDir():
			return dir, nil
		case err == nil:
			return "", fmt.Errorf("%s is no folder", dir)
		case !errors.Is(err, fs.ErrNotExist):
			return "", err
		case dir == filepath.Dir(dir):
			return "", fmt.Errorf("%s does not exist", dir)
		}
	}
}

func writable(dir string) bool { return unix.Access(dir, unix.W_OK|unix.X_OK) == nil }

// maxCounted bounds the files whose sizes are added up.
const maxCounted = 100_000

// sizeOf adds up what a folder holds, as far as it may be read.
func sizeOf(dir string) uint64 {
	total, counted := uint64(0), 0
	// What cannot be read, or is gone by now, counts nothing.
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if counted++; counted > maxCounted {
			return fs.SkipAll
		}
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		if info, err := e.Info(); err == nil {
			total += uint64(info.Size())
		}
		return nil
	})
	return total
}

// disk looks at the places of one disk.
func disk(places []place, syncAlways bool) []Finding {
	var dirs []string
	need := uint64(0)
	at := ""
	for _, p := range places {
		dirs = append(dirs, p.dir)
		need += p.need
		if p.measure && at == "" {
			at = p.existing
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(places[0].existing, &st); err != nil {
		return one(Fail, "disk", fmt.Sprintf("ask for the space of %s: %v", places[0].existing, err), "")
	}
	free := st.Bavail * uint64(st.Bsize)
	out := []Finding{spaceFinding(dirs, free, need)}
	if at == "" || free < leaveFree {
		return out
	}
	m, err := measure(at)
	if err != nil {
		return append(out, Finding{Fail, "disk speed", err.Error(), "use a disk that can be written"})
	}
	return append(out, speedFinding(at, m, syncAlways))
}

func spaceFinding(dirs []string, free, need uint64) Finding {
	slices.Sort(dirs)
	found := fmt.Sprintf("%s free for %s, which may grow by %s", roughly(free), strings.Join(dirs, ", "), roughly(need))
	switch {
	case free < leaveFree:
		return Finding{Fail, "disk", found, "make room"}
	case free < need:
		return Finding{Warn, "disk", found, "make room, or lower bus.embedded.max_bytes and agent.dead_letter.max_bytes"}
	}
	return Finding{OK, "disk", found, ""}
}

func roughly(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// lake says whether the folder is a lake, who wrote it last, and whether it belongs to
// the stream.
func lake(c *config.Config, b *bus.Broker) []Finding {
	dir := c.Materializer.Lake
	state, err := commitlog.Load(dir)
	switch {
	case errors.Is(err, commitlog.ErrNoLake):
		return one(OK, "lake", dir+" is no lake yet; sonde run makes it", "")
	case err != nil:
		return one(Fail, "lake", err.Error(), "restore the folder from a copy, or set materializer.lake to another one")
	}
	age := time.Since(time.Unix(0, state.WallNS)).Round(time.Second)
	found := fmt.Sprintf("%s is at version %d, written %v ago; who starts now goes on from there, or shares the work",
		dir, state.Version, age)
	s := state.Sources()[0]
	switch {
	case s.Stream != "" && s.Stream != c.Bus.Stream:
		return one(Warn, "lake", fmt.Sprintf("%s holds rows of stream %s, and bus.stream is %s", dir, s.Stream, c.Bus.Stream),
			"set materializer.lake to a folder of its own")
	case s.Incarnation != "" && b != nil && b.Stream != nil && b.Stream.Incarnation != s.Incarnation:
		return one(Warn, "lake", fmt.Sprintf("%s was made from another stream named %s, which is read from its start", dir,
			s.Stream), "set materializer.lake to a folder of its own when that is not wanted")
	}
	return one(OK, "lake", found, "")
}
