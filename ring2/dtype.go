package ring2

import "fmt"

// DType is the element type of a captured row. The codes are part of the ABI.
type DType uint8

// The element types.
const (
	F32    DType = 1
	F16    DType = 2
	BF16   DType = 3
	F8E4M3 DType = 4
	F8E5M2 DType = 5
	I32    DType = 6
	U8     DType = 7
	I64    DType = 8
	U16    DType = 9
	I8     DType = 10
)

var dtypes = [...]struct {
	name string
	size int
}{F32: {"f32", 4}, F16: {"f16", 2}, BF16: {"bf16", 2}, F8E4M3: {"f8e4m3", 1}, F8E5M2: {"f8e5m2", 1},
	I32: {"i32", 4}, U8: {"u8", 1}, I64: {"i64", 8}, U16: {"u16", 2}, I8: {"i8", 1}}

// Size is the size of one element in bytes, 0 for a code that does not exist.
func (d DType) Size() int {
	if int(d) >= len(dtypes) {
		return 0
	}
	return dtypes[d].size
}

// String is the name of the type, like "bf16".
func (d DType) String() string {
	if d.Size() == 0 {
		return fmt.Sprintf("dtype(%d)", uint8(d))
	}
	return dtypes[d].name
}

// ParseDType is the inverse of String.
func ParseDType(name string) (DType, error) {
	for d, t := range dtypes {
		if t.name == name && t.size != 0 {
			return DType(d), nil
		}
	}
	return 0, fmt.Errorf("unknown dtype %q: use one of f32, f16, bf16, f8e4m3, f8e5m2, i32, u8, i64, u16, i8", name)
}
