// Package safetensors reads and writes the files in which weights and tensors
// travel: 8 bytes of header length, a JSON header, and the raw little-endian
// data of each tensor.
//
// A file comes from outside. Its header is checked whole when it is opened:
// lengths and offsets lie inside the file, tensors neither overlap nor leave
// holes, sizes follow from shapes, names are there once. After that, reading a
// tensor can fail only as reading any file can.
package safetensors
