package safetensors

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

const metadataKey = "__metadata__"

// entry is where a tensor lies, in bytes of the data.
type entry struct {
	dtype      string
	shape      []int
	begin, end int64
}

// headerEntry is a tensor in the header's JSON.
type headerEntry struct {
	DType   string  `json:"dtype"`
	Shape   []int64 `json:"shape"`
	Offsets []int64 `json:"data_offsets"`
}

// parseHeader reads the JSON of a header and checks it against the size of the
// data. It reads key by key, since a map would hide a name that is there twice.
func parseHeader(header []byte, dataSize int64) (map[string]entry, map[string]string, error) {
	if len(header) == 0 || header[0] != '{' {
		return nil, nil, fmt.Errorf("parse JSON: it does not begin with a brace")
	}
	d := json.NewDecoder(bytes.NewReader(header))
	d.DisallowUnknownFields()
	if _, err := d.Token(); err != nil {
		return nil, nil, fmt.Errorf("parse JSON: %w", err)
	}
	tensors, metadata := map[string]entry{}, map[string]string(nil)
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, nil, fmt.Errorf("parse JSON: %w", err)
		}
		name, _ := token.(string) // a key is a string, or More and Token fail
		_, twice := tensors[name]
		switch {
		case twice || name == metadataKey && metadata != nil:
			return nil, nil, fmt.Errorf("read entry %q: it is there twice", name)
		case name == metadataKey:
			if err := d.Decode(&metadata); err != nil {
				return nil, nil, fmt.Errorf("read metadata, a map of texts: %w", err)
			}
			continue
		}
		e, err := parseEntry(d)
		if err != nil {
			return nil, nil, fmt.Errorf("read tensor %q: %w", name, err)
		}
		tensors[name] = e
	}
	if _, err := d.Token(); err != nil {
		return nil, nil, fmt.Errorf("parse JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, nil, fmt.Errorf("parse JSON: something follows the header's object")
	}
	return tensors, metadata, checkPlaces(tensors, dataSize)
}

func parseEntry(d *json.Decoder) (entry, error) {
	var in headerEntry
	if err := d.Decode(&in); err != nil {
		return entry{}, err
	}
	if in.Shape == nil || len(in.Offsets) != 2 {
		return entry{}, fmt.Errorf("lacks a shape, or two data_offsets")
	}
	size, err := byteSize(in.DType, in.Shape)
	if err != nil {
		return entry{}, err
	}
	e := entry{dtype: in.DType, begin: in.Offsets[0], end: in.Offsets[1]}
	if e.begin < 0 || e.end < e.begin || e.end-e.begin != size {
		return entry{}, fmt.Errorf("has bytes %d to %d for %d bytes of %s %v", e.begin, e.end, size, in.DType, in.Shape)
	}
	for _, n := range in.Shape {
		if int64(int(n)) != n {
			return entry{}, fmt.Errorf("has shape %v, too large for this machine", in.Shape)
		}
		e.shape = append(e.shape, int(n))
	}
	return e, nil
}

// checkPlaces says whether the tensors fill the data one after the other.
func checkPlaces(tensors map[string]entry, dataSize int64) error {
	type place struct {
		name string
		entry
	}
	places := make([]place, 0, len(tensors))
	for name, e := range tensors {
		places = append(places, place{name, e})
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(a.end, b.end), cmp.Compare(a.name, b.name))
	})
	at := int64(0)
	for _, p := range places {
		if p.begin != at {
			return fmt.Errorf("read tensor %q: it begins at byte %d of the data, where %d was expected: "+
				"tensors overlap or leave a hole", p.name, p.begin, at)
		}
		at = p.end
	}
	if at != dataSize {
		return fmt.Errorf("compare the tensors with the file: they fill %d bytes of %d; it may be cut short or damaged",
			at, dataSize)
	}
	return nil
}
