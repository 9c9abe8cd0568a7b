package lakehouse

import (
	"context"
	"fmt"

	"sonde/lakehouse/account"
	"sonde/lakehouse/table"
)

// Account judges the durable ledger: it gives every expected row of the lake
// exactly one class and names the rows that are stored twice, stored unasked or
// unexplained.
func (l *Lake) Account(ctx context.Context) (*account.Account, error) {
	b := account.NewBuilder()
	if err := l.Tell(ctx, func(uint64, string, int) *account.Builder { return b }); err != nil {
		return nil, err
	}
	return b.Finish(), nil
}

// Tell tells the builders that of names, one for each epoch perhaps, all facts and the
// identities of all stored rows of the lake.
func (l *Lake) Tell(ctx context.Context, of func(epoch uint64, engine string, rank int) *account.Builder) error {
	state := Lake{dir: l.dir} // of one commit, whatever Refresh does meanwhile
	state.state.Store(l.state.Load())
	err := state.Ledger(ctx, Query{}, func(f *Fact) error { return of(f.Epoch, f.Engine, f.Rank).Fact(*f) })
	if err != nil {
		return fmt.Errorf("account for the ledger: %w", err)
	}
	stored := func(o *table.Origin, p *table.Place) {
		of(o.Epoch, o.Engine, o.Rank).Stored(account.Row{Epoch: o.Epoch, Hook: p.Hook, Layer: p.Layer, Shard: p.Shard,
			Seq: p.Seq, Row: p.Row})
	}
	err = state.vectors(ctx, Query{}, true, func(v *Vector) error { stored(&v.Origin, &v.Place); return nil })
	if err == nil {
		err = state.Tokens(ctx, Query{}, func(t *Token) error { stored(&t.Origin, &t.Place); return nil })
	}
	if err == nil {
		err = state.VectorStats(ctx, Query{}, func(s *VectorStats) error { stored(&s.Origin, &s.Place); return nil })
	}
	if err != nil {
		return fmt.Errorf("account for the stored rows: %w", err)
	}
	return nil
}
