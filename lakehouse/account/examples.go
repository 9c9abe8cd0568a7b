package account

import "fmt"

// Kinds of defects that are named.
const (
	kindRepeated = iota
	kindUnasked
	kindUnexplained
	kindCount
)

// perKind bounds the examples of one kind.
const perKind = 8

// examples are the first few of each kind.
type examples struct {
	count [kindCount]int
	text  []string
}

func (x *examples) add(kind int, text func() string) {
	if x.full(kind) {
		return
	}
	x.count[kind]++
	x.text = append(x.text, text())
}

func (x *examples) full(kind int) bool { return x.count[kind] >= perKind }

func (c *chain) rowName(e *epoch, seq uint64, row uint32) string {
	shard := ""
	if c.key.shard != 0 {
		shard = fmt.Sprintf(" shard %d", c.key.shard)
	}
	return fmt.Sprintf("epoch %016x hook %s layer %d%s seq %d row %d", e.id, c.key.hook, c.key.layer, shard, seq, row)
}
