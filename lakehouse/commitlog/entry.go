// Package commitlog is the log of a lake: entries 1, 2, 3, ... in files of their
// own, each made by link(2), which fails when the name is taken. What the entries
// name is the lake; a file that none names does not exist. FORMAT.md, one folder
// up, documents the files. The package knows no Parquet and no bus; the states of
// chains are text to it.
package commitlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// Formats of the log. A reader refuses any other. Partition 0 alone is written in
// format 1, which knows no other, so that readers of before read a lake that has
// only one partition.
const (
	formatOne  = 1
	formatMany = 2 // an entry of another partition than 0; a checkpoint with several
)

// MaxPartitions bounds the partitions of a stream: those of a log are 0 to
// MaxPartitions-1.
const MaxPartitions = 1 << 10

// Folder is the folder of the log in a lake.
const Folder = "_log"

// maxFileBytes bounds what is read as one file of the log.
const maxFileBytes = 256 << 20

// Source is a position in one partition of a stream of the bus: everything before
// Next is in the lake.
type Source struct {
	Stream      string `json:"stream"`
	Incarnation string `json:"incarnation"`
	Next        uint64 `json:"next"`
}

// File is a data file.
type File struct {
	Table  string   `json:"table"`
	Path   string   `json:"path"` // below the lake, with slashes
	Rows   int64    `json:"rows"`
	Bytes  int64    `json:"bytes"`
	First  uint64   `json:"first"` // positions in the partition of the messages whose rows it holds
	Last   uint64   `json:"last"`
	CRC32C string   `json:"crc32c"` // of the whole file, 8 hex digits
	Epochs []string `json:"epochs"` // of its rows, 16 hex digits each
}

// DeadLetter names a message that could not be decoded.
type DeadLetter struct {
	Position uint64 `json:"position"`
	Reason   string `json:"reason"`
}

// Totals count since the lake was made.
type Totals struct {
	Rows        map[string]uint64 `json:"rows"` // stored, by table
	Duplicates  uint64            `json:"duplicates"`
	DeadLetters uint64            `json:"dead_letters"`
	Trimmed     uint64            `json:"trimmed"` // positions that were trimmed away before they were read
}

// Kinds of entries.
const (
	KindClaim  = "claim"
	KindCommit = "commit"
)

// Entry is one entry of the log. It speaks of one partition.
type Entry struct {
	Format      int               `json:"format"`
	Version     uint64            `json:"version"`
	Kind        string            `json:"kind"`
	Partition   int               `json:"partition,omitempty"`
	Writer      string            `json:"writer"` // random per claim
	Claim       uint64            `json:"claim"`  // version of the writer's claim of the partition
	WallNS      int64             `json:"wall_ns"`
	Source      Source            `json:"source"`
	Files       []File            `json:"files,omitempty"`
	Chains      map[string]string `json:"chains,omitempty"` // new states of the chains that moved
	Closed      []string          `json:"closed,omitempty"` // epochs that ended in this commit
	Forgotten   []string          `json:"forgotten,omitempty"`
	Totals      Totals            `json:"totals"`
	DeadLetters []DeadLetter      `json:"dead_letters,omitempty"` // examples of this commit
}

// checkpoint is the state after an entry, so that opening need not read all
// entries. The list of files lies in manifests, which later checkpoints share.
type checkpoint struct {
	Format  int    `json:"format"`
	Version uint64 `json:"version"`
	WallNS  int64  `json:"wall_ns"`
	savedPartition
	Others    []savedPartition `json:"partitions,omitempty"`
	Lake      string           `json:"lake,omitempty"`
	Totals    Totals           `json:"totals"`
	Manifests []manifestRef    `json:"manifests"`
}

// savedPartition is the state of a partition in a checkpoint.
type savedPartition struct {
	Partition int               `json:"partition,omitempty"`
	Writer    string            `json:"writer"`
	Claim     uint64            `json:"claim"`
	Source    Source            `json:"source"`
	Chains    map[string]string `json:"chains"`
	Closed    map[string]int64  `json:"closed"`
	Forgotten []string          `json:"forgotten"`
}

type manifestRef struct {
	Name  string `json:"name"`
	Level int    `json:"level"` // a manifest of level n+1 replaces mergeAt of level n
	Files int    `json:"files"`
}

// manifest is a part of the list of files, in the order of the commits.
type manifest struct {
	Format int    `json:"format"` // formatOne
	Files  []File `json:"files"`
}

func entryName(version uint64) string      { return fmt.Sprintf("%020d.json", version) }
func checkpointName(version uint64) string { return fmt.Sprintf("%020d.checkpoint.json", version) }
func manifestName(version uint64, level int) string {
	return fmt.Sprintf("%020d-%d.files.json", version, level)
}

var logFileName = regexp.MustCompile(`^(\d{20})(\.checkpoint)?\.json$`)

// parseLogName reads the name of an entry or a checkpoint.
func parseLogName(name string) (version uint64, isCheckpoint, ok bool) {
	m := logFileName.FindStringSubmatch(name)
	if m == nil {
		return 0, false, false
	}
	version, err := strconv.ParseUint(m[1], 10, 64)
	return version, m[2] != "", err == nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type checksumLine struct {
	CRC32C string `json:"crc32c"`
}

// seal makes the bytes of a log file: two lines of JSON, of which the second holds
// the checksum of the first with its line feed.
func seal(v any) []byte {
	body, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("BUG: %T is no JSON: %v", v, err))
	}
	return sealBytes(body)
}

func sealBytes(body []byte) []byte {
	body = append(body, '\n')
	return fmt.Appendf(body, "{\"crc32c\":\"%08x\"}\n", crc32.Checksum(body, castagnoli))
}

// unseal reads what seal made, from anywhere.
func unseal(data []byte, v any) error {
	body, rest, ok := bytes.Cut(data, []byte("\n"))
	if !ok {
		return errors.New("it has no second line, which holds the checksum")
	}
	var sum checksumLine
	if err := json.Unmarshal(rest, &sum); err != nil {
		return fmt.Errorf("read the checksum in its second line: %w", err)
	}
	got := fmt.Sprintf("%08x", crc32.Checksum(data[:len(body)+1], castagnoli))
	if got != sum.CRC32C {
		return fmt.Errorf("its checksum is %s, but it says %.20q", got, sum.CRC32C)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("read its first line: %w", err)
	}
	return nil
}

// readLogFile reads and checks one file of the log. Errors name it.
func readLogFile(lake, name string, v any) error {
	path := filepath.Join(lake, Folder, name)
	f, err := os.Open(path)
	if err != nil {
		return err // names the path, and callers look for fs.ErrNotExist
	}
	defer f.Close() // was only read
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > maxFileBytes {
		return fmt.Errorf("read %s: it has more than %d bytes", path, maxFileBytes)
	}
	if err := unseal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func readEntry(lake string, version uint64) (*Entry, error) {
	e := new(Entry)
	if err := readLogFile(lake, entryName(version), e); err != nil {
		return nil, err
	}
	path := filepath.Join(lake, Folder, entryName(version))
	switch {
	case e.Format != formatOf(e.Partition):
		return nil, fmt.Errorf("read %s: format %d, partition %d, and this program reads %d for partition 0 and %d for "+
			"others: upgrade it", path, e.Format, e.Partition, formatOne, formatMany)
	case e.Partition < 0 || e.Partition >= MaxPartitions:
		return nil, fmt.Errorf("read %s: partition %d; want 0 to %d", path, e.Partition, MaxPartitions-1)
	case e.Version != version:
		return nil, fmt.Errorf("read %s: it says version %d", path, e.Version)
	case e.Kind != KindClaim && e.Kind != KindCommit:
		return nil, fmt.Errorf("read %s: kind %.40q is neither claim nor commit", path, e.Kind)
	}
	for _, f := range e.Files {
		if err := checkPath(f.Path); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	return e, nil
}

// formatOf is the format of an entry.
func formatOf(partition int) int {
	if partition == 0 {
		return formatOne
	}
	return formatMany
}

// checkPath keeps a damaged log from leading out of the lake.
func checkPath(path string) error {
	if !filepath.IsLocal(filepath.FromSlash(path)) {
		return fmt.Errorf("file %.80q does not lie in the lake", path)
	}
	return nil
}
