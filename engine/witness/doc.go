// Package witness is the engine's own record of what it computed: a hash of each
// row, in a file that never sees the ring, so that a reader of the dataset can
// prove that its bytes are those of this very computation.
//
// A folder holds one file per epoch, EPOCH.witness with 16 hex digits. A file is
// a list of records: length (u32, of the payload), CRC-32C of the payload (u32),
// payload; all little-endian. The first payload names the epoch and the hooks;
// each later one is a step: its ranges, and then, hook by hook and row by row,
// the first 16 bytes of the SHA-256 of the row's bytes. A step is one write(2),
// which outlives the death of the process but not that of the machine.
package witness
