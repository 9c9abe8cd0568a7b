package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"unicode/utf8"
)

// Write writes a file. Tensors with larger elements come first, so that each
// lies at a multiple of its element's size; otherwise their order stays.
func Write(w io.Writer, tensors []Named, metadata map[string]string) error {
	ordered := slices.Clone(tensors)
	slices.SortStableFunc(ordered, func(a, b Named) int { return int(sizes[b.DType] - sizes[a.DType]) })
	header, err := buildHeader(ordered, metadata)
	if err != nil {
		return fmt.Errorf("write safetensors: %w", err)
	}
	prefix := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	if _, err := w.Write(append(prefix, header...)); err != nil {
		return fmt.Errorf("write safetensors: %w", err)
	}
	for _, t := range ordered {
		if _, err := w.Write(t.Data); err != nil {
			return fmt.Errorf("write safetensors: %w", err)
		}
	}
	return nil
}

func buildHeader(tensors []Named, metadata map[string]string) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	if len(metadata) > 0 {
		if err := appendMember(&b, metadataKey, metadata); err != nil {
			return nil, err
		}
	}
	names, at := map[string]bool{metadataKey: true}, int64(0)
	for _, t := range tensors {
		shape := make([]int64, len(t.Shape))
		for i, d := range t.Shape {
			shape[i] = int64(d)
		}
		size, err := byteSize(t.DType, shape)
		switch {
		case names[t.Name]:
			return nil, fmt.Errorf("name tensor %q: the name is taken", t.Name)
		case !utf8.ValidString(t.Name):
			return nil, fmt.Errorf("name tensor %q: the name is not UTF-8", t.Name)
		case err != nil:
			return nil, fmt.Errorf("check tensor %q: it %w", t.Name, err)
		case size != int64(len(t.Data)):
			return nil, fmt.Errorf("check tensor %q: it has %d bytes for %s %v", t.Name, len(t.Data), t.DType, t.Shape)
		}
		names[t.Name] = true
		value := headerEntry{DType: t.DType, Shape: shape, Offsets: []int64{at, at + size}}
		if err := appendMember(&b, t.Name, value); err != nil {
			return nil, err
		}
		at += size
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ') // so that the data begins at a multiple of 8
	}
	if b.Len() > maxHeader {
		return nil, fmt.Errorf("build the header: it has %d bytes, at most %d", b.Len(), maxHeader)
	}
	return b.Bytes(), nil
}

// appendMember adds a member to the object that b holds the beginning of.
func appendMember(b *bytes.Buffer, name string, value any) error {
	text, err := json.Marshal(map[string]any{name: value})
	if err != nil {
		return fmt.Errorf("write %q as JSON: %w", name, err)
	}
	if b.Len() > 1 {
		b.WriteByte(',')
	}
	b.Write(text[1 : len(text)-1])
	return nil
}
