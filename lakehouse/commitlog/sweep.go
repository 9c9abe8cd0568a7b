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
// incarnation, the positions of the first and the last message, and the claim of
// the writer, so that writers that read the same messages never share a name.
func dataName(incarnation string, first, last, claim uint64) string {
	return fmt.Sprintf("%08x-%020d-%020d-%d.parquet", crc32.Checksum([]byte(incarnation), castagnoli), first, last, claim)
}

var dataFileName = regexp.MustCompile(`^[0-9a-f]{8}-\d{20}-\d{20}-(\d{1,20})\.parquet$`)

// tempName holds the claim, which says whether its writer may still be alive.
func tempName(claim uint64, name string) string {
	return fmt.Sprintf("%s%d-%s", tempPrefix, claim, name)
}

var tempFileName = regexp.MustCompile(`^\.tmp-(\d{1,20})-`)

// claimTempPrefix is for entries that claim: their writers have no claim yet.
const claimTempPrefix = tempPrefix + "claim-"

// claimTempAge is how old such a file must be before its writer counts as dead.
const claimTempAge = 10 * time.Minute

// sweep removes temporary files and data files that older writers left behind.
// Those writers cannot commit any more: their next entry's name is taken. Only
// names that a writer gives are touched, and only files that no entry names.
func (w *Writer) sweep() error {
	named := make(map[string]bool, len(w.state.Files))
	for _, f := range w.state.Files {
		named[f.Path] = true
	}
	for _, dir := range append([]string{Folder}, w.o.Tables...) {
		d, err := os.Open(filepath.Join(w.put.lake, dir))
		if err != nil {
			return fmt.Errorf("sweep the lake: %w", err)
		}
		names, err := d.Readdirnames(-1)
		if err := errors.Join(err, d.Close()); err != nil {
			return fmt.Errorf("sweep the lake: %w", err)
		}
		for _, name := range names {
			if named[dir+"/"+name] || !w.orphan(dir, name) {
				continue
			}
			path := filepath.Join(w.put.lake, dir, name)
			if err := removeIfThere(path); err != nil {
				return fmt.Errorf("sweep the lake: %w", err)
			}
			w.swept++
		}
	}
	return nil
}

// orphan reports whether a file that no entry names is a writer's that is dead.
func (w *Writer) orphan(dir, name string) bool {
	if strings.HasPrefix(name, claimTempPrefix) {
		info, err := os.Lstat(filepath.Join(w.put.lake, dir, name))
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
	return err == nil && claim < w.state.Claim
}
