package schema

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Keys of the Arrow schema metadata. SCHEMA.md documents each.
const (
	keyVersion       = "sonde.version"
	keyKind          = "sonde.kind"
	keyTenant        = "sonde.tenant"
	keyEngine        = "sonde.engine"
	keyRank          = "sonde.rank"
	keyEpoch         = "sonde.epoch"
	keyHook          = "sonde.hook"
	keyLayer         = "sonde.layer"
	keyShard         = "sonde.shard"
	keyShardCount    = "sonde.shard_count"
	keyDType         = "sonde.dtype"
	keyShape         = "sonde.shape"
	keyRagged        = "sonde.ragged"
	keyModel         = "sonde.model"
	keyRevision      = "sonde.revision"
	keyWeightsDigest = "sonde.weights_digest"
	keyQuantisation  = "sonde.quantisation"
	keyEngineVersion = "sonde.engine_version"
	keyPolicyVersion = "sonde.policy_version"
	keyPrev          = "sonde.prev"
	keySpans         = "sonde.spans"
)

var metadataKeys = []string{keyVersion, keyKind, keyTenant, keyEngine, keyRank, keyEpoch, keyHook, keyLayer, keyShard,
	keyShardCount, keyDType, keyShape, keyRagged, keyModel, keyRevision, keyWeightsDigest, keyQuantisation,
	keyEngineVersion,
	keyPolicyVersion, keyPrev, keySpans}

// metadataValues are the values of h in the order of metadataKeys.
func (h *Header) metadataValues() ([]string, error) {
	values := []string{strconv.Itoa(Version), string(h.Kind), h.Tenant, h.Engine, strconv.Itoa(h.Rank),
		fmt.Sprintf("%016x", h.Epoch), h.Hook, strconv.Itoa(h.Layer), strconv.Itoa(h.Shard), strconv.Itoa(h.ShardCount),
		h.DType, formatShape(h.Shape), strconv.FormatBool(h.Ragged), h.Model, h.Revision, h.WeightsDigest,
		h.Quantisation, h.EngineVersion, h.PolicyVersion, h.Prev.String(), string(appendSpans(nil, h.Spans))}
	for i, v := range values[:len(values)-1] {
		if len(v) > MaxStringBytes {
			return nil, fmt.Errorf("metadata %s has %d bytes; at most %d", metadataKeys[i], len(v), MaxStringBytes)
		}
	}
	return values, nil
}

// headerOf reads the metadata of an untrusted message.
func headerOf(pairs []pair) (Header, error) {
	f := fields{pairs: pairs}
	version := f.text(keyVersion)
	major, _, _ := strings.Cut(version, ".")
	if f.err == nil && major != strconv.Itoa(Version) {
		return Header{}, fmt.Errorf("message has schema version %q and this program reads version %d: "+
			"upgrade the program that reads", clip(version), Version)
	}
	h := Header{Kind: Kind(f.text(keyKind)), Tenant: f.text(keyTenant), Engine: f.text(keyEngine),
		Rank: f.number(keyRank, 0), Hook: f.text(keyHook), Layer: f.number(keyLayer, -1), Shard: f.number(keyShard, 0),
		ShardCount: f.number(keyShardCount, 0), DType: f.text(keyDType), Model: f.text(keyModel),
		Revision: f.text(keyRevision), WeightsDigest: f.text(keyWeightsDigest), Quantisation: f.text(keyQuantisation),
		EngineVersion: f.text(keyEngineVersion), PolicyVersion: f.text(keyPolicyVersion)}
	h.Epoch = f.epoch()
	h.Shape = f.shape()
	h.Ragged = f.flag(keyRagged)
	h.Prev = f.prev()
	h.Spans = f.spans()
	if f.err != nil {
		return Header{}, f.err
	}
	if columnsOf[h.Kind] == nil {
		return Header{}, fmt.Errorf("message has the unknown kind %q; known are vectors, stats, requests, ledger, detections",
			clip(string(h.Kind)))
	}
	return h, nil
}

// fields reads metadata values and keeps the first error.
type fields struct {
	pairs []pair
	err   error
}

func (f *fields) fail(key, value, want string) {
	if f.err == nil {
		f.err = fmt.Errorf("metadata %s = %q: %s", key, clip(value), want)
	}
}

func (f *fields) raw(key string) string {
	for _, p := range f.pairs {
		if p.key == key {
			return p.value
		}
	}
	if f.err == nil {
		f.err = fmt.Errorf("metadata %s is missing: not a message of Sonde", key)
	}
	return ""
}

func (f *fields) text(key string) string {
	v := f.raw(key)
	if len(v) > MaxStringBytes {
		f.fail(key, v, fmt.Sprintf("%d bytes, at most %d", len(v), MaxStringBytes))
		return ""
	}
	return v
}

func (f *fields) number(key string, least int) int {
	v := f.text(key)
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || int(n) < least {
		f.fail(key, v, fmt.Sprintf("want a whole number from %d", least))
	}
	return int(n)
}

func (f *fields) flag(key string) bool {
	v := f.text(key)
	if v != "true" && v != "false" {
		f.fail(key, v, "want true or false")
	}
	return v == "true"
}

func (f *fields) epoch() uint64 {
	v := f.text(keyEpoch)
	n, err := strconv.ParseUint(v, 16, 64)
	if err != nil || len(v) != 16 {
		f.fail(keyEpoch, v, "want 16 hex digits")
	}
	return n
}

func (f *fields) shape() []int {
	v := f.text(keyShape)
	if v == "" {
		return nil
	}
	parts := strings.Split(v, ",")
	const most = 16
	if len(parts) > most {
		f.fail(keyShape, v, fmt.Sprintf("at most %d dimensions", most))
		return nil
	}
	shape := make([]int, len(parts))
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 31)
		if err != nil {
			f.fail(keyShape, v, "want sizes like 8,64")
			return nil
		}
		shape[i] = int(n)
	}
	return shape
}

func (f *fields) prev() Cursor {
	v := f.text(keyPrev)
	c, err := ParseCursor(v)
	if err != nil {
		f.fail(keyPrev, v, "want seq:row")
	}
	return c
}

func (f *fields) spans() []Span {
	v := f.raw(keySpans)
	if v == "" {
		return nil
	}
	if n := strings.Count(v, " ") + 1; n > MaxRows {
		f.fail(keySpans, v, fmt.Sprintf("%d spans, at most %d", n, MaxRows))
		return nil
	}
	var spans []Span
	var rows uint64
	var last Cursor
	for v != "" {
		var word string
		word, v, _ = strings.Cut(v, " ")
		s, ok := parseSpan(word)
		if !ok {
			f.fail(keySpans, word, "want seq:first+rows, at least one row")
			return nil
		}
		if s.Start().Less(last) {
			f.fail(keySpans, word, "spans must ascend")
			return nil
		}
		last = s.End()
		if rows += uint64(s.Rows); rows > MaxRows {
			f.fail(keySpans, word, fmt.Sprintf("more than %d rows", MaxRows))
			return nil
		}
		spans = append(spans, s)
	}
	return spans
}

func appendSpan(b []byte, s Span) []byte {
	b = strconv.AppendUint(b, s.Seq, 10)
	b = append(b, ':')
	b = strconv.AppendUint(b, uint64(s.First), 10)
	b = append(b, '+')
	return strconv.AppendUint(b, uint64(s.Rows), 10)
}

func appendSpans(b []byte, spans []Span) []byte {
	for i, s := range spans {
		if i > 0 {
			b = append(b, ' ')
		}
		b = appendSpan(b, s)
	}
	return b
}

func parseSpan(word string) (Span, bool) {
	seq, rest, ok := strings.Cut(word, ":")
	first, rows, ok2 := strings.Cut(rest, "+")
	if !ok || !ok2 {
		return Span{}, false
	}
	q, err := strconv.ParseUint(seq, 10, 64)
	if err != nil {
		return Span{}, false
	}
	a, err := strconv.ParseUint(first, 10, 32)
	if err != nil {
		return Span{}, false
	}
	n, err := strconv.ParseUint(rows, 10, 32)
	if err != nil || n == 0 || a+n > math.MaxUint32 {
		return Span{}, false
	}
	return Span{Seq: q, First: uint32(a), Rows: uint32(n)}, true
}

func formatShape(shape []int) string {
	var b []byte
	for i, n := range shape {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(n), 10)
	}
	return string(b)
}
