// Package lakehouse reads a lake: six tables of Parquet files, of which a commit
// log names those that count. FORMAT.md documents files and log. A lake that is
// being written can be read at every moment; a reader sees one commit until it
// asks for a newer one. The write side is package consumers/materializer.
package lakehouse

import "sonde/lakehouse/table"

// Query chooses rows. Zero fields match everything; a field that a table does not
// have matches each of its rows.
type Query = table.Query

// TensorQuery asks for the rows of one sample of one request at one hook.
type TensorQuery struct {
	Request      string
	Sample       int
	Hook         string
	Layer        int  // -1: none
	Shard        *int // one part of a tensor that is split over ranks; nil: all of them, joined
	From, To     int  // positions [From, To); To 0: to the last position that anything is known about
	AllowPartial bool
	Epoch        *uint64 // needed when the request id was used more than once
	Number       *uint64 // needed when it was used more than once in an epoch
}
