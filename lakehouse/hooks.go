package lakehouse

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"sonde/lakehouse/commitlog"
	"sonde/lakehouse/table"
)

// File is a data file that the log names.
type File = commitlog.File

// Files lists the data files of the commit that is read, in the order of the
// commits.
func (l *Lake) Files() []File { return slices.Clone(l.state.Load().Files) }

// Hook is what a lake holds of one hook in one form.
type Hook struct {
	Table  string // vectors, tokens or vector_stats
	Hook   string
	Layers []int  // ascending; -1: none
	DType  string // as captured, like bf16
	Shape  string // of one row, like 8,64; of one element of a row where Ragged
	Ragged bool
	Rows   uint64
}

// Hooks lists the hooks of which rows are stored, by name, table and form. It
// reads the keys of all rows and no vector.
func (l *Lake) Hooks(ctx context.Context) ([]Hook, error) {
	state := &Lake{dir: l.dir} // of one commit, whatever Refresh does meanwhile
	state.state.Store(l.state.Load())
	s := hookSummary{}
	err := state.vectors(ctx, Query{}, true, func(v *Vector) error {
		s.take(table.Vectors, &v.Place, v.DType, v.Shape, v.Ragged)
		return nil
	})
	if err == nil {
		err = state.Tokens(ctx, Query{}, func(t *Token) error {
			s.take(table.Tokens, &t.Place, "i32", nil, false)
			return nil
		})
	}
	if err == nil {
		err = state.VectorStats(ctx, Query{}, func(v *VectorStats) error {
			s.take(table.VectorStats, &v.Place, v.DType, v.Shape, false)
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("list the hooks: %w", err)
	}
	return s.hooks(), nil
}

type hookForm struct {
	hook, table, dtype, shape string
	ragged                    bool
}

// hookSummary counts rows by form and layer.
type hookSummary map[hookForm]map[int]uint64

func (s hookSummary) take(name table.Name, p *table.Place, dtype string, shape []int, ragged bool) {
	f := hookForm{p.Hook, string(name), dtype, shapeText(shape), ragged}
	if s[f] == nil {
		s[f] = map[int]uint64{}
	}
	s[f][p.Layer]++
}

func (s hookSummary) hooks() []Hook {
	out := make([]Hook, 0, len(s))
	for f, layers := range s {
		h := Hook{Table: f.table, Hook: f.hook, Layers: slices.Sorted(maps.Keys(layers)), DType: f.dtype, Shape: f.shape,
			Ragged: f.ragged}
		for _, rows := range layers {
			h.Rows += rows
		}
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b Hook) int {
		return cmp.Or(cmp.Compare(a.Hook, b.Hook), cmp.Compare(a.Table, b.Table), cmp.Compare(a.DType, b.DType),
			cmp.Compare(a.Shape, b.Shape), cmp.Compare(strconv.FormatBool(a.Ragged), strconv.FormatBool(b.Ragged)))
	})
	return out
}

func shapeText(shape []int) string {
	parts := make([]string, len(shape))
	for i, n := range shape {
		parts[i] = strconv.Itoa(n)
	}
	return strings.Join(parts, ",")
}
