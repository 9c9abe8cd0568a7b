package table

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/klauspost/compress/huff0"
	"github.com/klauspost/compress/zstd"
)

// planes makes the compressed data pages of the vec column. BYTE_STREAM_SPLIT puts
// byte k of all floats into plane k. The planes of hidden states are of three
// kinds: zeros (what widening bf16 adds), bytes in which every value is about
// equally frequent (the lower bits of the mantissa), and bytes in which a few values
// are frequent, the exponent. Nothing in them repeats as strings do, so that looking
// for repetitions, most of the work of zstd, is in vain, and one table of symbols
// for all kinds makes the file larger. So each kind gets the blocks that fit it: RLE,
// raw, and Huffman-coded literals without sequences. They make a frame as any zstd
// makes and reads. Where a sample shows that something does repeat, the page is left
// to the ordinary encoder.
//
// It is used by one goroutine and keeps its memory.
type planes struct {
	huff    huff0.Scratch
	zstd    *zstd.Encoder
	plane   [4][]byte
	levels  []byte
	floats  []float32
	scratch []byte
	repeats bool // found in the sample of the row group
	last    int  // where the header of the last block stands in the page
}

// valuesPerPage is how many floats a page holds: 1 MiB of them, but for a row that
// is longer.
const valuesPerPage = 1 << 18

// maxBlock is what one block of zstd may hold.
const maxBlock = 128 << 10

// Kinds of blocks, and of literals, in the format of zstd.
const (
	blockRaw        = 0
	blockRLE        = 1
	blockCompressed = 2
	literalsHuffman = 2
)

// The dtypes whose planes are made without floats between.
var bf16Codec, f32Codec = codecs["bf16"], codecs["f32"]

// vecRow is the list of one row: raw elements of a dtype, or null.
type vecRow struct {
	codec *codec // nil: null
	raw   []byte
}

// dim is the length of the list, or null.
func (r *vecRow) dim() int {
	if r.codec == nil {
		return null
	}
	return len(r.raw) / r.codec.bytes
}

// page is a compressed data page.
type page struct {
	data         []byte
	values       int // levels, nulls and empty lists included
	nulls        int // levels that have no value
	uncompressed int
}

func newPlanes() *planes {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(zstdLevel)), zstd.WithEncoderCRC(false),
		zstd.WithEncoderConcurrency(1), zstd.WithAllLitEntropyCompression(true), zstd.WithZeroFrames(true))
	if err != nil {
		panic("BUG: the options of zstd: " + err.Error())
	}
	return &planes{zstd: e, huff: huff0.Scratch{Reuse: huff0.ReusePolicyNone}}
}

// pages divides the rows of a row group into pages.
func (p *planes) pages(rows []vecRow) []page {
	var out []page
	for from := 0; from < len(rows); {
		to, values := from, 0
		for to < len(rows) && (to == from || values+max(rows[to].dim(), 1) <= valuesPerPage) {
			values += max(rows[to].dim(), 1)
			to++
		}
		out = append(out, p.page(rows[from:to], values, from == 0))
		from = to
	}
	return out
}

func (p *planes) page(rows []vecRow, values int, first bool) page {
	p.levels = appendLevels(p.levels[:0], rows)
	n := p.split(rows)
	nulls := values - n // an empty list has no value either
	size := len(p.levels) + 4*n
	if first {
		p.repeats = p.sampleRepeats()
	}
	if p.repeats {
		p.scratch = append(p.scratch[:0], p.levels...)
		for k := range p.plane {
			p.scratch = append(p.scratch, p.filled(k, n)...)
		}
		return page{p.zstd.EncodeAll(p.scratch, nil), values, nulls, size}
	}
	out := make([]byte, 0, len(p.levels)+len(p.plane[0])+len(p.plane[1])+2*n+1024)
	out = binary.LittleEndian.AppendUint32(out, 0xfd2fb528)
	out = append(out, 2<<6|1<<5) // one segment, its size in 4 bytes, no checksum
	out = binary.LittleEndian.AppendUint32(out, uint32(size))
	out = p.appendLevelBlocks(out)
	for k := range p.plane {
		if len(p.plane[k]) == 0 {
			out = p.appendZeros(out, n)
		} else {
			out = p.appendPlane(out, p.plane[k])
		}
	}
	out[p.last] |= 1
	return page{out, values, nulls, size}
}

// filled is a plane that may have been left out because it is zero.
func (p *planes) filled(k, n int) []byte {
	if len(p.plane[k]) == 0 {
		return make([]byte, n)
	}
	return p.plane[k]
}

// split fills the planes with the floats of the rows and returns how many there
// are. Planes 0 and 1 stay empty when only bf16 is there: they are zero.
func (p *planes) split(rows []vecRow) int {
	n, narrow := 0, true
	for i := range rows {
		if d := rows[i].dim(); d > 0 {
			n += d
			narrow = narrow && rows[i].codec == bf16Codec
		}
	}
	for k := range p.plane {
		if narrow && k < 2 {
			p.plane[k] = p.plane[k][:0]
		} else {
			p.plane[k] = grow(p.plane[k][:0], n)
		}
	}
	at := 0
	for i := range rows {
		c, raw, d := rows[i].codec, rows[i].raw, rows[i].dim()
		switch {
		case d <= 0:
			continue
		case c == f32Codec:
			p.splitF32(at, raw)
		case c == bf16Codec && narrow:
			splitBF16(p.plane[2][at:at+d], p.plane[3][at:at+d], raw)
		default:
			p.floats = grow(p.floats[:0], d)
			c.widen(p.floats, raw)
			for k, v := range p.floats {
				bits := math.Float32bits(v)
				p.plane[0][at+k], p.plane[1][at+k] = byte(bits), byte(bits>>8)
				p.plane[2][at+k], p.plane[3][at+k] = byte(bits>>16), byte(bits>>24)
			}
		}
		at += d
	}
	return n
}

// grow makes s longer by n elements, whatever they hold.
func grow[T any](s []T, n int) []T {
	if cap(s)-len(s) < n {
		s = append(make([]T, 0, len(s)+n+n/4), s...)
	}
	return s[:len(s)+n]
}

// splitBF16 takes four elements per load.
func splitBF16(low, high, src []byte) {
	for len(low) >= 4 && len(high) >= 4 && len(src) >= 8 {
		v := binary.LittleEndian.Uint64(src)
		binary.LittleEndian.PutUint32(low, evenBytes(v))
		binary.LittleEndian.PutUint32(high, evenBytes(v>>8))
		low, high, src = low[4:], high[4:], src[8:]
	}
	for i := range low {
		low[i], high[i] = src[2*i], src[2*i+1]
	}
}

// evenBytes are bytes 0, 2, 4 and 6.
func evenBytes(v uint64) uint32 {
	v &= 0x00ff00ff00ff00ff
	v |= v >> 8
	v &= 0x0000ffff0000ffff
	return uint32(v | v>>16)
}

// splitF32 takes four elements at a time.
func (p *planes) splitF32(at int, src []byte) {
	n := len(src) / 4
	a, b, c, d := p.plane[0][at:at+n], p.plane[1][at:at+n], p.plane[2][at:at+n], p.plane[3][at:at+n]
	for len(src) >= 16 {
		v, w := binary.LittleEndian.Uint64(src), binary.LittleEndian.Uint64(src[8:])
		even, odd := uint64(evenBytes(v))|uint64(evenBytes(w))<<32, uint64(evenBytes(v>>8))|uint64(evenBytes(w>>8))<<32
		binary.LittleEndian.PutUint32(a, evenBytes(even))
		binary.LittleEndian.PutUint32(b, evenBytes(odd))
		binary.LittleEndian.PutUint32(c, evenBytes(even>>8))
		binary.LittleEndian.PutUint32(d, evenBytes(odd>>8))
		a, b, c, d, src = a[4:], b[4:], c[4:], d[4:], src[16:]
	}
	for i := range a {
		a[i], b[i], c[i], d[i] = src[4*i], src[4*i+1], src[4*i+2], src[4*i+3]
	}
}

// sampleRepeats compares, on the first part of each plane, the ordinary encoder
// with the blocks of a plane.
func (p *planes) sampleRepeats() bool {
	const sample, worth = 8 << 10, 0.97
	p.scratch = p.scratch[:0]
	ours := 0
	for k := range p.plane {
		part := p.plane[k][:min(len(p.plane[k]), sample)]
		p.scratch = append(p.scratch, part...)
		if len(part) > 0 {
			ours += len(p.appendPlane(nil, part))
		}
	}
	return len(p.scratch) > 0 && float64(len(p.zstd.EncodeAll(p.scratch, nil))) < worth*float64(ours)
}

// appendBlock appends the header of a block of so many bytes.
func (p *planes) appendBlock(out []byte, kind, size int) []byte {
	p.last = len(out)
	h := uint32(kind<<1 | size<<3)
	return append(out, byte(h), byte(h>>8), byte(h>>16))
}

func (p *planes) appendZeros(out []byte, n int) []byte {
	for ; n > 0; n -= min(n, maxBlock) {
		out = append(p.appendBlock(out, blockRLE, min(n, maxBlock)), 0)
	}
	return out
}

func (p *planes) appendPlane(out, plane []byte) []byte {
	for len(plane) > 0 {
		n := min(len(plane), maxBlock)
		out = p.appendLiterals(out, plane[:n])
		plane = plane[n:]
	}
	return out
}

// appendLiterals appends a block whose bytes have nothing to do with those before.
func (p *planes) appendLiterals(out, b []byte) []byte {
	const leastForHuffman, leastForFourStreams = 64, 1 << 10
	var coded []byte
	err := huff0.ErrIncompressible
	switch {
	case len(b) >= leastForFourStreams:
		coded, _, err = huff0.Compress4X(b, &p.huff)
	case len(b) >= leastForHuffman:
		coded, _, err = huff0.Compress1X(b, &p.huff)
	}
	const headers = 6 // of the literals, and the number of sequences
	switch {
	case errors.Is(err, huff0.ErrUseRLE):
		return append(p.appendBlock(out, blockRLE, len(b)), b[0])
	case err == nil && len(coded)+headers < len(b):
		header, size := literalsHeader(len(b), len(coded), len(b) >= leastForFourStreams)
		out = p.appendBlock(out, blockCompressed, size+len(coded)+1)
		for range size {
			out = append(out, byte(header))
			header >>= 8
		}
		return append(append(out, coded...), 0) // no sequences
	case err == nil || errors.Is(err, huff0.ErrIncompressible):
		return append(p.appendBlock(out, blockRaw, len(b)), b...)
	}
	panic(fmt.Sprintf("BUG: Huffman coding of %d bytes: %v", len(b), err))
}

// literalsHeader is the header of Huffman-coded literals, and how many bytes it has.
func literalsHeader(regenerated, coded int, four bool) (header uint64, size int) {
	format, width := uint64(0), 10
	switch {
	case !four:
	case regenerated < 1<<10 && coded < 1<<10:
		format = 1
	case regenerated < 1<<14 && coded < 1<<14:
		format, width = 2, 14
	default:
		format, width = 3, 18
	}
	header = literalsHuffman | format<<2 | uint64(regenerated)<<4 | uint64(coded)<<(4+width)
	return header, (4 + 2*width + 7) / 8
}

// appendLevelBlocks appends the levels. Those of many rows repeat, so they are left
// to the ordinary encoder, whose blocks stand first in the frame, as in their own.
func (p *planes) appendLevelBlocks(out []byte) []byte {
	const leastForZstd = 64
	if len(p.levels) < leastForZstd {
		return append(p.appendBlock(out, blockRaw, len(p.levels)), p.levels...)
	}
	p.scratch = p.zstd.EncodeAll(p.levels, p.scratch[:0])
	blocks := p.scratch[frameHeaderBytes(p.scratch):]
	for last := false; !last; {
		h := uint32(blocks[0]) | uint32(blocks[1])<<8 | uint32(blocks[2])<<16
		kind, size := int(h>>1&3), int(h>>3)
		content := size
		if kind == blockRLE {
			content = 1
		}
		last = h&1 == 1
		out = append(p.appendBlock(out, kind, size), blocks[3:3+content]...)
		blocks = blocks[3+content:]
	}
	return out
}

// frameHeaderBytes is the length of magic number and frame header.
func frameHeaderBytes(frame []byte) int {
	descriptor := frame[4]
	single := int(descriptor >> 5 & 1)
	n := 5 + 1 - single                                 // the window, which one segment does without
	return n + [...]int{single, 2, 4, 8}[descriptor>>6] // the size of the content
}
