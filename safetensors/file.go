package safetensors

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
)

// maxHeader bounds the memory that opening a file takes.
const maxHeader = 16 << 20

// File is an open file. Its methods may be called at the same time.
type File struct {
	r        io.ReaderAt
	closer   io.Closer
	name     string
	start    int64 // of the data
	tensors  map[string]entry
	metadata map[string]string
}

// Open opens the file at path. The caller closes it.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open weights: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open weights: %w", err)
	}
	out, err := Read(f, info.Size())
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	out.closer, out.name = f, path
	return out, nil
}

// Read reads the header of a file of size bytes. Tensors are read from r when
// they are asked for.
func Read(r io.ReaderAt, size int64) (*File, error) {
	var prefix [8]byte
	if size < int64(len(prefix)) {
		return nil, fmt.Errorf("read safetensors header: the file has %d bytes, too few for any header", size)
	}
	if err := readAt(r, prefix[:], 0); err != nil {
		return nil, fmt.Errorf("read safetensors header: %w", err)
	}
	length := binary.LittleEndian.Uint64(prefix[:])
	if length > maxHeader {
		return nil, fmt.Errorf("read safetensors header: it claims %d bytes, at most %d are read: this may be another format",
			length, maxHeader)
	}
	f := &File{r: r, name: "safetensors", start: int64(len(prefix)) + int64(length)}
	if f.start > size {
		return nil, fmt.Errorf("read safetensors header: it claims %d bytes, the file has %d: it may be cut short",
			length, size)
	}
	header := make([]byte, length)
	if err := readAt(r, header, int64(len(prefix))); err != nil {
		return nil, fmt.Errorf("read safetensors header: %w", err)
	}
	var err error
	if f.tensors, f.metadata, err = parseHeader(header, size-f.start); err != nil {
		return nil, fmt.Errorf("read safetensors header: %w", err)
	}
	return f, nil
}

// Names lists the tensors in alphabetical order.
func (f *File) Names() []string { return slices.Sorted(maps.Keys(f.tensors)) }

// Metadata is the free text that the writer left, by name.
func (f *File) Metadata() map[string]string { return maps.Clone(f.metadata) }

// Tensor reads one tensor. Its data belongs to the caller.
func (f *File) Tensor(name string) (Tensor, error) {
	e, ok := f.tensors[name]
	if !ok {
		return Tensor{}, fmt.Errorf("find tensor %q in %s: it has %d others", name, f.name, len(f.tensors))
	}
	t := Tensor{DType: e.dtype, Shape: slices.Clone(e.shape), Data: make([]byte, e.end-e.begin)}
	if err := readAt(f.r, t.Data, f.start+e.begin); err != nil {
		return Tensor{}, fmt.Errorf("read tensor %q of %s: %w", name, f.name, err)
	}
	return t, nil
}

// Close closes a file that Open opened.
func (f *File) Close() error {
	if f.closer == nil {
		return nil
	}
	return f.closer.Close()
}

// readAt fills b. A ReaderAt may say EOF although b is full.
func readAt(r io.ReaderAt, b []byte, at int64) error {
	if len(b) == 0 {
		return nil
	}
	n, err := r.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
