package ring2

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Bounds of dumps of corrupt rings.
const (
	dumpDescs = 64  // descriptors of one dump, the corrupt one among the last
	maxDumps  = 128 // files in the quarantine folder; then a corrupt ring is only logged
)

// dumpCorrupt keeps the epoch of a corrupt ring from attaching again and writes
// what a person needs to find out why. It runs with the session's lock held.
func (l *Listener) dumpCorrupt(s *Session, why *corruptError) {
	l.corrupt.Add(1)
	l.mu.Lock()
	if l.quarantined[s.config.Epoch] == nil {
		l.order = append(l.order, s.config.Epoch)
	}
	l.quarantined[s.config.Epoch] = why
	if len(l.order) > maxQuarantined {
		delete(l.quarantined, l.order[0])
		l.order = l.order[1:]
	}
	l.mu.Unlock()
	path, err := writeDump(l.o.QuarantineDir, &s.config, s.core, why)
	switch {
	case err != nil:
		s.log.Error("ring is in quarantine; its dump failed", "error", why, "dump_error", err)
	case path == "":
		s.log.Error("ring is in quarantine", "error", why)
	default:
		l.dumps.Add(1)
		s.log.Error("ring is in quarantine", "error", why, "dump", path)
	}
}

// writeDump writes a text file with the three zones and the descriptors around
// the corrupt one, in hexadecimal. path is empty without a folder.
func writeDump(dir string, c *Config, core *readerCore, why *corruptError) (path string, err error) {
	if dir == "" {
		return "", nil
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("make quarantine folder: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("read quarantine folder: %w", err)
	}
	if len(entries) >= maxDumps {
		return "", fmt.Errorf("quarantine folder %s holds %d files already; look at them and remove them", dir, len(entries))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "ring of engine %q, rank %d, epoch %016x, at %s\n%v\nnext %d, released %d, claimed %d\n",
		c.EngineInstance, c.Rank, c.Epoch, time.Now().UTC().Format(time.RFC3339Nano), why, core.next, core.release,
		atomic.LoadUint64(&core.producer.ClaimSeq))
	section(&b, "config zone", bytesOf(core.config))
	section(&b, "producer zone", bytesOf(core.producer))
	section(&b, "consumer zone", bytesOf(core.consumer))
	n := min(uint64(dumpDescs), uint64(len(core.descs)))
	for seq := why.seq - n/2; seq != why.seq-n/2+n; seq++ {
		section(&b, fmt.Sprintf("descriptor %d of record %d", seq&core.mask, seq), bytesOf(core.desc(seq)))
	}
	path = filepath.Join(dir, fmt.Sprintf("ring-%016x-rank%d.txt", c.Epoch, c.Rank))
	if err := os.WriteFile(path, []byte(b.String()), 0o640); err != nil {
		return "", fmt.Errorf("write dump: %w", err)
	}
	return path, nil
}

func section(b *strings.Builder, title string, data []byte) {
	fmt.Fprintf(b, "\n%s\n%s", title, hex.Dump(data))
}
