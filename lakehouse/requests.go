package lakehouse

import (
	"cmp"
	"context"
	"io"
	"maps"
	"slices"

	"sonde/lakehouse/table"
	"sonde/schema"
)

// Requests calls f with the requests that match q, one per (Epoch, Number),
// ordered by the time they opened, until it returns an error. Open and end may lie
// in different commits, so all matching requests are held in memory before the
// first call: about 500 bytes each.
func (l *Lake) Requests(ctx context.Context, q Query, f func(*Request) error) error {
	type key struct{ epoch, number uint64 }
	found := map[key]*Request{}
	err := l.read(ctx, table.Requests, q.Epoch, func(r io.ReaderAt, size int64) error {
		return table.ReadRequests(r, size, &q, callback(ctx, func(e *table.RequestEvent) error {
			k := key{e.Epoch, e.Row.Number}
			if found[k] == nil {
				found[k] = &Request{Origin: e.Origin, Number: e.Row.Number}
			}
			found[k].take(&e.Row)
			return nil
		}))
	})
	if err != nil {
		return err
	}
	all := slices.SortedFunc(maps.Values(found), func(a, b *Request) int {
		return cmp.Or(cmp.Compare(a.startNS(), b.startNS()), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Number, b.Number))
	})
	for _, r := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

func (r *Request) startNS() int64 {
	if r.Opened {
		return r.OpenNS
	}
	return r.EndNS
}

// take merges an event. What an event does not know is zero and changes nothing.
func (r *Request) take(e *schema.RequestRow) {
	r.Request, r.EngineID = cmp.Or(e.Request, r.Request), cmp.Or(e.EngineID, r.EngineID)
	r.Adapter, r.TraceParent = cmp.Or(e.Adapter, r.Adapter), cmp.Or(e.TraceParent, r.TraceParent)
	r.Reason, r.Sample = cmp.Or(e.Reason, r.Reason), cmp.Or(e.Sample, r.Sample)
	r.PromptTokens, r.MaxTokens = cmp.Or(e.PromptTokens, r.PromptTokens), cmp.Or(e.MaxTokens, r.MaxTokens)
	r.GeneratedTokens = cmp.Or(e.GeneratedTokens, r.GeneratedTokens)
	r.CachedTokens, r.Passes = cmp.Or(e.CachedTokens, r.CachedTokens), cmp.Or(e.Passes, r.Passes)
	r.OptIn = r.OptIn || e.OptIn
	if len(e.Labels) > 0 {
		r.Labels = e.Labels
	}
	switch e.Event {
	case schema.EventOpen:
		r.Opened, r.OpenNS = true, e.WallNS
	case schema.EventEnd:
		r.Ended, r.EndNS = true, e.WallNS
	}
}
