package table

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// decodePage is what any reader of Parquet gets from a page: levels, and floats.
func decodePage(t *testing.T, p page) (levels, values []byte) {
	t.Helper()
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out, err := d.DecodeAll(p.data, nil)
	if err != nil {
		t.Fatalf("the page is no frame of zstd: %v", err)
	}
	if len(out) != p.uncompressed {
		t.Fatalf("the page holds %d bytes and says %d", len(out), p.uncompressed)
	}
	at := 0
	for range 2 {
		at += 4 + int(binary.LittleEndian.Uint32(out[at:]))
	}
	return out[:at], out[at:]
}

// wantValues are the floats of rows, byte k of all of them after byte k-1.
func wantValues(rows []vecRow) []byte {
	var floats []float32
	for _, r := range rows {
		if r.dim() > 0 {
			f := make([]float32, r.dim())
			r.codec.widen(f, r.raw)
			floats = append(floats, f...)
		}
	}
	out := make([]byte, 4*len(floats))
	for i, f := range floats {
		for k := range 4 {
			out[k*len(floats)+i] = byte(math.Float32bits(f) >> (8 * k))
		}
	}
	return out
}

// readRuns reads the runs of one kind of levels.
func readRuns(t *testing.T, b []byte) (levels []byte) {
	t.Helper()
	for len(b) > 0 {
		head, n := binary.Uvarint(b)
		if n <= 0 || head&1 != 0 || len(b) < n+1 {
			t.Fatalf("no run of RLE: % x", b)
		}
		levels = append(levels, bytes.Repeat(b[n:n+1], int(head>>1))...)
		b = b[n+1:]
	}
	return levels
}

func checkPages(t *testing.T, rows []vecRow) {
	t.Helper()
	p := newPlanes()
	for _, pg := range p.pages(rows) {
		levels, values := decodePage(t, pg)
		n := int(binary.LittleEndian.Uint32(levels))
		rep, def := readRuns(t, levels[4:4+n]), readRuns(t, levels[8+n:])
		var part []vecRow
		for at := 0; at < pg.values; {
			part = append(part, rows[0])
			at += max(rows[0].dim(), 1)
			rows = rows[1:]
		}
		var wantRep, wantDef []byte
		for _, r := range part {
			wantRep = append(append(wantRep, 0), bytes.Repeat([]byte{1}, max(r.dim(), 1)-1)...)
			wantDef = append(wantDef, bytes.Repeat([]byte{byte(min(r.dim(), 1) + 1)}, max(r.dim(), 1))...)
		}
		if !bytes.Equal(rep, wantRep) || !bytes.Equal(def, wantDef) {
			t.Fatalf("levels of %d rows differ", len(part))
		}
		if !bytes.Equal(values, wantValues(part)) {
			t.Fatalf("values of %d rows differ", len(part))
		}
	}
	if len(rows) > 0 {
		t.Fatalf("%d rows are in no page", len(rows))
	}
}

// Every length at which a block, a header or a page changes its form.
func TestPagesOfEveryLengthHoldTheValues(t *testing.T) {
	r := newRandom(t)
	for _, n := range []int{1, 2, 3, 4, 5, 7, 8, 63, 64, 65, 1023, 1024, 1025, 1<<14 - 1, 1 << 14, 1<<14 + 1, maxBlock - 1,
		maxBlock, maxBlock + 1, valuesPerPage, valuesPerPage + 5, 3 * maxBlock} {
		for _, c := range []*codec{bf16Codec, f32Codec, codecs["f16"], codecs["u8"]} {
			raw := make([]byte, n*c.bytes)
			for i := range n {
				switch bits := math.Float32bits(float32(r.NormFloat64())); c {
				case f32Codec:
					binary.LittleEndian.PutUint32(raw[4*i:], bits)
				case codecs["u8"]:
					raw[i] = byte(r.IntN(8))
				default:
					binary.LittleEndian.PutUint16(raw[2*i:], uint16(bits>>16))
				}
			}
			checkPages(t, []vecRow{{c, raw}, {c, raw[:c.bytes*(n/2)]}})
		}
	}
}

// Rows that are null, empty, of another dtype, or constant, in any order.
func TestPagesOfMixedRowsHoldTheValues(t *testing.T) {
	r := newRandom(t)
	kinds := []*codec{nil, bf16Codec, bf16Codec, f32Codec, codecs["f16"], codecs["i8"], codecs["u16"], codecs["f8e4m3"]}
	for range 200 {
		rows := make([]vecRow, 1+r.IntN(200))
		one := r.IntN(3) == 0 // all of one dtype
		kind := kinds[r.IntN(len(kinds))]
		for i := range rows {
			if !one {
				kind = kinds[r.IntN(len(kinds))]
			}
			rows[i] = vecRow{codec: kind, raw: []byte{}}
			if kind == nil {
				rows[i].raw = []byte{1, 2, 3}
				continue
			}
			dim := []int{0, 1, 2, 3, r.IntN(50), r.IntN(5000)}[r.IntN(6)]
			rows[i].raw = make([]byte, dim*kind.bytes)
			switch r.IntN(3) {
			case 0:
				for k := range rows[i].raw {
					rows[i].raw[k] = byte(r.Uint32())
				}
			case 1:
				for k := range rows[i].raw {
					rows[i].raw[k] = byte(k % kind.bytes * 60)
				}
			}
		}
		checkPages(t, rows)
	}
}

// Values that repeat, such as one row again and again, are left to the ordinary
// encoder; others must not be.
func TestRepetitionsAreFound(t *testing.T) {
	r := newRandom(t)
	raw := make([]byte, 2*1024)
	for i := range raw {
		raw[i] = byte(r.Uint32())
	}
	same, other := make([]vecRow, 256), make([]vecRow, 256)
	for i := range same {
		same[i] = vecRow{bf16Codec, raw}
		own := make([]byte, len(raw))
		for k := 0; k < len(own); k += 2 {
			binary.LittleEndian.PutUint16(own[k:], uint16(math.Float32bits(float32(r.NormFloat64()))>>16))
		}
		other[i] = vecRow{bf16Codec, own}
	}
	size := func(rows []vecRow) (n float64) {
		checkPages(t, rows)
		for _, p := range newPlanes().pages(rows) {
			n += float64(len(p.data))
		}
		return n / float64(len(rows)*len(raw))
	}
	if got := size(same); got > 0.1 {
		t.Errorf("a row that repeats takes %.3f of its bytes", got)
	}
	if got := size(other); got > 0.71 {
		t.Errorf("normal values take %.3f of their bytes; their entropy is about 0.66", got)
	}
}

// Pages are made the same way twice: nothing of one group is left for the next.
func TestPagesDoNotDependOnThoseBefore(t *testing.T) {
	r := newRandom(t)
	p := newPlanes()
	var groups [][]vecRow
	for range 20 {
		c := []*codec{bf16Codec, f32Codec, codecs["f16"]}[r.IntN(3)]
		rows := make([]vecRow, 1+r.IntN(30))
		for i := range rows {
			rows[i] = vecRow{c, make([]byte, c.bytes*r.IntN(3000))}
			for k := range rows[i].raw {
				rows[i].raw[k] = byte(r.NormFloat64() * 10)
			}
		}
		groups = append(groups, rows)
	}
	for i, rows := range groups {
		for k, pg := range p.pages(rows) {
			if fresh := newPlanes().pages(rows)[k]; !bytes.Equal(fresh.data, pg.data) {
				t.Fatalf("page %d of group %d differs when others came before", k, i)
			}
		}
	}
}
