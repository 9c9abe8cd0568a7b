package oracle

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"sonde/engine/witness"
	"sonde/lakehouse"
	"sonde/lakehouse/table"
	"sonde/schema"
)

// CompareWithWitness compares every row of a lake at rest with what the engine
// witnessed, and with the arithmetic model, prints the page, and is an error when
// a row is not what it should be, or nobody says where it is. Then it reads some
// tensors back.
func CompareWithWitness(ctx context.Context, out io.Writer, lakeDir, witnessDir string) (*Report, error) {
	return CompareEach(ctx, out, lakeDir, witnessDir, nil)
}

// CompareEach is CompareWithWitness that also calls named, unless it is nil, with each
// row that is not stored and that the ledger names.
func CompareEach(ctx context.Context, out io.Writer, lakeDir, witnessDir string, named func(Key)) (*Report, error) {
	c := NewChecker()
	c.Named = named
	c.Recompute = Arithmetic
	err := witness.Read(witnessDir, func(r witness.Row) error {
		c.Witness(Key{r.Epoch, r.Request, r.Sample, r.Position, r.Pass, r.Hook, r.Layer}, r.Hash)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the engine's witness: %w", err)
	}
	lake, err := lakehouse.Open(lakeDir)
	if err != nil {
		return nil, err
	}
	if err := feed(ctx, c, lake); err != nil {
		return nil, fmt.Errorf("compare the lake with the engine's witness: %w", err)
	}
	r := c.Finish()
	r.Print(out)
	if err := r.Err(); err != nil {
		return r, err
	}
	rows, err := c.CheckTensors(ctx, lake, readBack)
	if err != nil {
		return r, fmt.Errorf("read back a tensor: %w", err)
	}
	fmt.Fprintf(out, "read back: %d rows of tensors of %d sequences, with the last stored pass of each position\n", rows,
		min(readBack, len(c.names)))
	return r, nil
}

// readBack is of how many sequences a tensor is read back.
const readBack = 24

// feed shows the checker the lake: layouts before the facts that name them.
func feed(ctx context.Context, c *Checker, lake *lakehouse.Lake) error {
	for _, layouts := range []bool{true, false} {
		err := lake.Ledger(ctx, lakehouse.Query{}, func(f *lakehouse.Fact) error {
			if (f.Fact == schema.FactLayout) != layouts {
				return nil
			}
			return c.Fact(f)
		})
		if err != nil {
			return err
		}
	}
	err := lake.Vectors(ctx, lakehouse.Query{}, func(v *lakehouse.Vector) error {
		c.Stored(keyOf(&v.Origin, &v.Place), v.Raw)
		return nil
	})
	if err != nil {
		return err
	}
	var raw [4]byte
	return lake.Tokens(ctx, lakehouse.Query{}, func(t *lakehouse.Token) error {
		binary.LittleEndian.PutUint32(raw[:], uint32(t.TokenID))
		c.Stored(keyOf(&t.Origin, &t.Place), raw[:])
		return nil
	})
}

func keyOf(o *table.Origin, p *table.Place) Key {
	return Key{o.Epoch, p.Request, int(p.Sample), int(p.Position), int(p.Pass), p.Hook, p.Layer}
}
