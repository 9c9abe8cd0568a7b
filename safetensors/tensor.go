package safetensors

import (
	"fmt"
	"math"
	"slices"
)

// Tensor is an array of numbers, row by row.
type Tensor struct {
	DType string // as the format spells it: F32, BF16, F16, I32, U8, ...
	Shape []int  // empty: a single number
	Data  []byte // little-endian
}

// Named is a tensor with its name, which is any text but "__metadata__".
type Named struct {
	Name string
	Tensor
}

// maxRank is the highest number of dimensions that a tensor can have.
const maxRank = 16

var sizes = map[string]int64{
	"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
	"I16": 2, "U16": 2, "F16": 2, "BF16": 2,
	"I32": 4, "U32": 4, "F32": 4,
	"I64": 8, "U64": 8, "F64": 8, "C64": 8,
}

// byteSize is the size of a tensor's data.
func byteSize(dtype string, shape []int64) (int64, error) {
	size, ok := sizes[dtype]
	if !ok {
		return 0, fmt.Errorf("has element type %q, which is not one of the format", dtype)
	}
	if len(shape) > maxRank {
		return 0, fmt.Errorf("has %d dimensions; at most %d", len(shape), maxRank)
	}
	if len(shape) > 0 && slices.Min(shape) < 0 {
		return 0, fmt.Errorf("has a negative dimension in shape %v", shape)
	}
	if slices.Contains(shape, 0) {
		return 0, nil
	}
	for _, d := range shape {
		if d > math.MaxInt64/size {
			return 0, fmt.Errorf("has shape %v, more than a file can hold", shape)
		}
		size *= d
	}
	return size, nil
}
