package commitlog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// dataName is incarnation-first-last-claim.parquet: a checksum of the stream's
// incarnation, with .partition when that is not 0, the positions of the first and the
// last message, and the claim of the writer, so that writers that read the same
// messages never share a name.
func dataName(incarnation string, partition int, first, last, claim uint64) string {
	stream := fmt.Sprintf("%08x", crc32.Checksum([]byte(incarnation), castagnoli))
	if partition > 0 {
		stream += fmt.Sprintf(".%d", partition)
	}
	return fmt.Sprintf("%s-%020d-%020d-%d.parquet", stream, first, last, claim)
}

var dataFileName = regexp.MustCompile(`^[0-9a-f]{8}(?:\.\d{1,4})?-\d{20}-\d{20}-(\d{1,20})\.parquet$`)

// tempName holds the claim, which says whether its writer may still be alive.
func tempName(claim uint64, name string) string {
	return fmt.Sprintf("%s%d-%s", tempPrefix, claim, name)
}

var tempFileName = regexp.MustCompile(`^\.tmp-(\d{1,20})-`)

// claimTempPrefix is for entries that claim: their writers have no claim yet.
const claimTempPrefix = tempPrefix + "claim-"

// claimTempAge is how old such a file must be before its writer counts as dead.
const claimTempAge = 10 * time.Minute

// sweepFolder removes from a folder what no entry names and a dead writer made.
func (l *Log) sweepFolder(dir string, named map[string]bool, dead func(claim uint64) bool) (removed int, err error) {
	d, err := os.Open(filepath.Join(l.put.lake, dir))
	if err != nil {
		return 0, err
	}
	names, err := d.Readdirnames(-1)
	if err := errors.Join(err, d.Close()); err != nil {
		return 0, err
	}
	for _, name := range names {
		path := filepath.Join(l.put.lake, dir, name)
		if named[dir+"/"+name] || !orphan(dir, path, dead) {
			continue
		}
		if err := removeIfThere(path); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// orphan reports whether a file that no entry names is a writer's that is dead.
func orphan(dir, path string, dead func(claim uint64) bool) bool {
	name := filepath.Base(path)
	if strings.HasPrefix(name, claimTempPrefix) {
		info, err := os.Lstat(path)
		return !errors.Is(err, fs.ErrNotExist) && err == nil && time.Since(info.ModTime()) > claimTempAge
	}
	m := tempFileName.FindStringSubmatch(name)
	if m == nil && dir != Folder {
		m = dataFileName.FindStringSubmatch(name)
	}
	if m == nil {
		return false
	}
	claim, err := strconv.ParseUint(m[1], 10, 64)
	return err == nil && dead(claim)
}
