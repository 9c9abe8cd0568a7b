package ring2

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

func abiPage(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("ABI.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// between cuts the part of the page from one phrase to the next.
func between(t *testing.T, page, from, to string) string {
	t.Helper()
	_, rest, ok := strings.Cut(page, from)
	part, _, end := strings.Cut(rest, to)
	if !ok || !end {
		t.Fatalf("the page has nothing between %q and %q", from, to)
	}
	return part
}

var (
	pageRow   = regexp.MustCompile(`(?m)^\| (\d+) \| ([^|]*) \|`)
	pageField = regexp.MustCompile(`u(8|16|32|64)\s+(\w+)((?:, \w+)*)(?:\[(\d+)\])?`)
	pageZone  = regexp.MustCompile(`(\d+)\s+\x60u(32|64)\s+(\w+)(?:\[(\d+)\])?\x60`)
)

// fieldsOf lists the fields of a generated structure by their names in C, without
// underscores.
func fieldsOf(v any) map[string][2]int {
	out := map[string][2]int{}
	typ := reflect.TypeOf(v)
	for i := range typ.NumField() {
		if f := typ.Field(i); f.Name != "_" && f.Name != "Reserved" {
			out[strings.ToLower(f.Name)] = [2]int{int(f.Offset), int(f.Type.Size())}
		}
	}
	return out
}

// A stranger counts on the offsets of the page.
func TestPageHasEveryFieldAtItsOffset(t *testing.T) {
	page := abiPage(t)
	for _, c := range []struct {
		from, to string
		fields   map[string][2]int
	}{
		{"## 1. Socket", "| type | from", fieldsOf(abiMessage{})},
		{"**Zone 0", "**Zone 1", fieldsOf(abiConfig{})},
		{"**Descriptors, at", "## 3.", fieldsOf(abiDesc{})},
	} {
		seen := map[string][2]int{}
		for _, row := range pageRow.FindAllStringSubmatch(between(t, page, c.from, c.to), -1) {
			at, err := strconv.Atoi(row[1])
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range pageField.FindAllStringSubmatch(row[2], -1) {
				size := atoi(t, f[1]) / 8
				if f[4] != "" {
					size *= atoi(t, f[4])
				}
				for _, n := range strings.Split(f[2]+f[3], ", ") {
					seen[strings.ReplaceAll(n, "_", "")] = [2]int{at, size}
					at += size
				}
			}
		}
		if !reflect.DeepEqual(seen, c.fields) {
			t.Errorf("%s has %v,\nthe header %v", c.from, seen, c.fields)
		}
	}
	zones := map[string]map[string][2]int{"**Zone 1": fieldsOf(abiProducer{}), "**Zone 2": fieldsOf(abiConsumer{})}
	for from, want := range zones {
		seen := map[string][2]int{}
		zone, _, _ := strings.Cut(between(t, page, from, "Beats are"), "**Zone")
		for _, f := range pageZone.FindAllStringSubmatch(zone, -1) {
			size := atoi(t, f[2]) / 8
			if f[4] != "" {
				size *= atoi(t, f[4])
			}
			seen[strings.ReplaceAll(f[3], "_", "")] = [2]int{atoi(t, f[1]), size}
		}
		if !reflect.DeepEqual(seen, want) {
			t.Errorf("%s has %v,\nthe header %v", from, seen, want)
		}
	}
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// codes lists "0 prefill, 1 decode, 2 recompute" from the names of the code.
func codes(first, count int, name func(int) string) string {
	var out []string
	for i := first; i < first+count; i++ {
		out = append(out, fmt.Sprintf("%d %s", i, name(i)))
	}
	return strings.Join(out, ", ")
}

func TestPageHasEveryCodeAndLimit(t *testing.T) {
	page := strings.Join(strings.Fields(abiPage(t)), " ")
	for _, want := range []string{
		codes(1, len(dtypes)-1, func(i int) string { return DType(i).String() }),
		codes(1, ReasonCount-1, func(i int) string { return Reason(i).String() }),
		codes(0, len(phaseNames), func(i int) string { return Phase(i).String() }),
		codes(0, len(verdictNames), func(i int) string { return Verdict(i).String() }),
		codes(0, len(finishNames), func(i int) string { return Finish(i).String() }),
		codes(0, len(abortNames), func(i int) string { return AbortOutcome(i).String() }),
		codes(0, len(modeNames), func(i int) string { return Mode(i).String() }),
		fmt.Sprintf("at most %d bytes (set `SO_SNDBUF`", abiMessageMaxBytes),
		fmt.Sprintf("Text %d bytes", MaxTextBytes),
		fmt.Sprintf("REQUEST_END %d bytes", MaxControlBytes),
		fmt.Sprintf("other control records %d bytes", maxControlRecord),
		fmt.Sprintf("%d entries of a layout, %d dimensions, 1 to 2^30 bytes of a row", MaxLayoutEntries, MaxDims),
		fmt.Sprintf("%d layouts and %d ranges of a step, 2^20 rows", MaxStepLayouts, MaxStepRanges),
		fmt.Sprintf("%d labels", MaxLabels),
		fmt.Sprintf("snapshot 2^18 items and %d MiB", maxSnapshotBytes>>20),
		fmt.Sprintf("`%#x`", crc32.Checksum([]byte("123456789"), castagnoli)),
		fmt.Sprintf("rank_count ≤ %d", maxRanks),
		fmt.Sprintf("%d + %d * desc_count", abiDescOff, abiDescBytes),
		fmt.Sprintf("`%#x`, the bytes `RNG2`", abiMagic),
		fmt.Sprintf("`%#x`, the bytes `R2GS`", abiMessageMagic),
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if maxSnapshotItems != 1<<18 || maxRowBytes != 1<<30 || maxRows != 1<<20 || maxDescCount != 1<<20 ||
		maxDataBytes != 1<<36 || layerLimit != 1<<20 {
		t.Error("a limit that the page gives as a power of two has changed")
	}
	for k := KindModel; k <= KindBye; k++ {
		if row := fmt.Sprintf("| %d %s |", k, strings.ToUpper(k.String())); !strings.Contains(page, row) {
			t.Errorf("the page has no row %q", row)
		}
	}
	for i, name := range messageNames[1:] {
		if row := fmt.Sprintf("| %d %s |", i+1, name); !strings.Contains(page, row) {
			t.Errorf("the page has no row %q", row)
		}
	}
}

// pageBytes reads a block of bytes: pairs of hex digits up to the explanation.
func pageBytes(t *testing.T, page, title string) []byte {
	t.Helper()
	var out []byte
	for line := range strings.Lines(between(t, page+"\n\n", "\n"+title+":\n\n", "\n\n")) {
		for _, word := range strings.Fields(line) {
			b, err := hex.DecodeString(word)
			if err != nil || len(word) != 2 {
				break
			}
			out = append(out, b...)
		}
	}
	return out
}

func TestPageShowsTheRealBytes(t *testing.T) {
	page := abiPage(t)
	r, ctl := loadGoldenRing(t)
	records, err := readRing(r, ctl)
	if err != nil {
		t.Fatal(err)
	}
	for title, want := range map[string][]byte{
		`HELLO of the library "c 1"`:         helloMessage("c 1"),
		"STEP payload, at data position 320": records[3].Payload,
		"STEP descriptor, slot 3":            bytesOf(r.desc(3)),
	} {
		if got := pageBytes(t, page, title); !bytes.Equal(got, want) {
			t.Errorf("%s is\n%x, the code has\n%x", title, got, want)
		}
	}
}
