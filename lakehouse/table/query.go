package table

// Query chooses rows. Zero fields match everything; a field that a table does not
// have matches each of its rows.
type Query struct {
	Request                string // external request id
	Sample, Position, Pass *int
	Hook                   string
	Layer                  *int // -1: hooks without a layer
	Tenant                 string
	Epoch                  *uint64 // of the engine's writer, also for detections
	Number                 *uint64 // sequence number in the epoch
	Shard                  *int
	Seq                    *SeqRange
}

// SeqRange is a range of records, both ends included.
type SeqRange struct{ First, Last uint64 }

func (r *SeqRange) holds(seq uint64) bool { return r == nil || seq >= r.First && seq <= r.Last }

func is[N ~int | ~int32](want *int, got N) bool { return want == nil || *want == int(got) }

func isNumber(want *uint64, got uint64) bool { return want == nil || *want == got }

func isText(want, got string) bool { return want == "" || want == got }

func (q *Query) origin(o *Origin) bool {
	return isText(q.Tenant, o.Tenant) && isNumber(q.Epoch, o.Epoch)
}

func (q *Query) row(o *Origin, p *Place) bool {
	return q.origin(o) && isText(q.Request, p.Request) && is(q.Sample, p.Sample) && is(q.Position, p.Position) &&
		is(q.Pass, p.Pass) && isText(q.Hook, p.Hook) && is(q.Layer, p.Layer) && is(q.Shard, p.Shard) &&
		isNumber(q.Number, p.Number) && q.Seq.holds(p.Seq)
}

func (q *Query) request(e *RequestEvent) bool {
	return q.origin(&e.Origin) && isText(q.Request, e.Row.Request) && is(q.Sample, e.Row.Sample) &&
		isNumber(q.Number, e.Row.Number) && q.Seq.holds(e.Row.Seq)
}

// fact matches facts about whole layouts whatever the hook: one of their entries
// may be it.
func (q *Query) fact(f *Fact) bool {
	r := &f.Row
	return q.origin(&f.Origin) && isText(q.Request, r.Request) && is(q.Sample, r.Sample) && is(q.Pass, r.Pass) &&
		(r.Hook == "" || isText(q.Hook, r.Hook) && is(q.Layer, r.Layer)) && isNumber(q.Number, r.Number) &&
		(q.Position == nil || covers(r.Position, r.Count, r.Stride, *q.Position)) && q.Seq.holds(r.Seq)
}

func covers(first, count, stride int32, position int) bool {
	d := int64(position) - int64(first)
	s := max(int64(stride), 1)
	return d >= 0 && d%s == 0 && d/s < int64(count)
}

func (q *Query) detection(d *Detection) bool {
	return isText(q.Tenant, d.Tenant) && isNumber(q.Epoch, d.Row.EngineEpoch) && isText(q.Request, d.Row.Request) &&
		is(q.Sample, d.Row.Sample) && is(q.Position, d.Row.Position) && isNumber(q.Number, d.Row.Number) &&
		q.Seq.holds(d.Row.Seq)
}

// bounds are the statistics of one row group. A column that is missing, or has no
// statistics, cannot exclude anything.
type bounds interface {
	text(column string) (low, high string, ok bool)
	number(column string) (low, high int64, ok bool)
}

// mayHold reports whether a row group with these statistics can hold a row of q.
func (q *Query) mayHold(b bounds, epochColumn string) bool {
	inText := func(column, want string) bool {
		low, high, ok := b.text(column)
		return want == "" || !ok || low <= want && want <= high
	}
	inNumber := func(column string, want *int) bool {
		if want == nil {
			return true
		}
		low, high, ok := b.number(column)
		return !ok || low <= int64(*want) && int64(*want) <= high
	}
	epoch := ""
	if q.Epoch != nil {
		epoch = epochText(*q.Epoch)
	}
	return inText("request", q.Request) && inText("tenant", q.Tenant) && inText(epochColumn, epoch) &&
		inText("hook", q.Hook) && inNumber("layer", q.Layer) && inNumber("sample", q.Sample) &&
		inNumber("position", q.Position) && inNumber("pass", q.Pass) && q.seqMayHold(b)
}

// seqMayHold gives up where a record number has the top bit: the column is signed.
func (q *Query) seqMayHold(b bounds) bool {
	low, high, ok := b.number("seq")
	if q.Seq == nil || !ok || low < 0 || high < 0 {
		return true
	}
	return q.Seq.First <= uint64(high) && q.Seq.Last >= uint64(low)
}
