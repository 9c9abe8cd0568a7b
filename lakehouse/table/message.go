package table

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"sonde/schema"
)

// Message is a decoded message whose rows go into a table.
type Message struct {
	*schema.Batch
	table  Name
	epoch  string
	shape  string
	codec  *codec // nil: rows are stored as raw bytes
	origin Origin
}

// NewMessage prepares a message. Text that is no UTF-8 is an error: one such value
// makes other engines refuse the whole file.
func NewMessage(b *schema.Batch) (*Message, error) {
	h := &b.Header
	m := &Message{Batch: b, table: tableOf(h), epoch: epochText(h.Epoch), shape: shapeText(h.Shape),
		codec: codecs[h.DType], origin: originOf(h)}
	if !allUTF8(h.Tenant, h.Engine, h.Hook, h.Model, h.Revision, h.WeightsDigest, h.Quantisation, h.EngineVersion,
		h.PolicyVersion) {
		return nil, errors.New("a text of the header is not UTF-8")
	}
	for i := range b.Len() {
		if !m.rowIsUTF8(i) {
			return nil, fmt.Errorf("a text of row %d is not UTF-8", i)
		}
	}
	return m, nil
}

func allUTF8(texts ...string) bool {
	return !slices.ContainsFunc(texts, func(s string) bool { return !utf8.ValidString(s) })
}

func (m *Message) rowIsUTF8(i int) bool {
	switch m.Header.Kind {
	case schema.KindVectors:
		return utf8.ValidString(m.Vector(i).Request)
	case schema.KindStats:
		return utf8.ValidString(m.Stats(i).Request)
	case schema.KindRequests:
		r := m.RequestAt(i)
		for k, v := range r.Labels {
			if !allUTF8(k, v) {
				return false
			}
		}
		return allUTF8(r.Event, r.Request, r.EngineID, r.Tenant, r.Adapter, r.TraceParent, r.Reason)
	case schema.KindLedger:
		r := m.Ledger(i)
		return allUTF8(r.Fact, r.Request, r.Entries, r.Outcome, r.Reason, r.Hook, r.Detail)
	}
	r := m.Detection(i)
	return allUTF8(r.ID, r.Detector, r.Version, r.Digest, r.Level, r.Mode, r.Request, r.Action, r.Outcome)
}

// Table is where the rows of the message belong.
func (m *Message) Table() Name { return m.table }

func tableOf(h *schema.Header) Name {
	switch h.Kind {
	case schema.KindVectors:
		if h.Hook == TokenHook && h.DType == "i32" && len(h.Shape) == 0 && !h.Ragged {
			return Tokens
		}
		return Vectors
	case schema.KindStats:
		return VectorStats
	case schema.KindRequests:
		return Requests
	case schema.KindLedger:
		return Ledger
	case schema.KindDetections:
		return Detections
	}
	panic(fmt.Sprintf("BUG: a decoded message has kind %q", h.Kind))
}

// Ref is one row of a message. The message must stay as it is until the file with
// the row was written.
type Ref struct {
	Message *Message
	Index   int
}

func epochText(epoch uint64) string { return fmt.Sprintf("%016x", epoch) }

func parseEpoch(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || len(s) != 16 {
		return 0, fmt.Errorf("epoch %.40q is not 16 hex digits", s)
	}
	return n, nil
}

// shapeText is "8,64"; empty for a scalar.
func shapeText(shape []int) string {
	var b []byte
	for i, n := range shape {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(n), 10)
	}
	return string(b)
}

func parseShape(s string) ([]int, error) {
	if s == "" {
		return nil, nil
	}
	parts := strings.Split(s, ",")
	shape := make([]int, len(parts))
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 31)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("shape %.40q is not sizes like 8,64", s)
		}
		shape[i] = int(n)
	}
	return shape, nil
}

func originOf(h *schema.Header) Origin {
	return Origin{Epoch: h.Epoch, Engine: h.Engine, Rank: h.Rank, Tenant: h.Tenant, Model: h.Model, Revision: h.Revision,
		WeightsDigest: h.WeightsDigest, Quantisation: h.Quantisation, EngineVersion: h.EngineVersion,
		PolicyVersion: h.PolicyVersion}
}

// sortByRequest orders rows of tokens at hooks by request, hook, layer, shard,
// sample, position and pass, so that a file can be cut where requests end and a
// reader of one request and layer needs one row group. Rows that are equal in all
// of these keep their order.
func sortByRequest(refs []Ref) {
	type key struct {
		request, chain         int // ranks
		sample, position, pass int32
		index                  int
	}
	chains, texts := rankChains(refs), make([]string, len(refs))
	keys := make([]key, len(refs))
	for i, r := range refs {
		k := key{chain: chains[r.Message], index: i}
		if r.Message.table == VectorStats {
			s := r.Message.Stats(r.Index)
			texts[i], k.sample, k.position, k.pass = s.Request, s.Sample, s.Position, s.Pass
		} else {
			v := r.Message.Vector(r.Index)
			texts[i], k.sample, k.position, k.pass = v.Request, v.Sample, v.Position, v.Pass
		}
		keys[i] = k
	}
	requests := rankTexts(texts)
	for i, t := range texts {
		keys[i].request = requests[t]
	}
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(cmp.Compare(a.request, b.request), cmp.Compare(a.chain, b.chain), cmp.Compare(a.sample, b.sample),
			cmp.Compare(a.position, b.position), cmp.Compare(a.pass, b.pass), cmp.Compare(a.index, b.index))
	})
	sorted := make([]Ref, len(refs))
	for i := range keys {
		sorted[i] = refs[keys[i].index]
	}
	copy(refs, sorted)
}

// rankTexts numbers texts in their order, equal ones alike.
func rankTexts(texts []string) map[string]int {
	ranks := map[string]int{}
	var distinct []string
	for _, t := range texts {
		if _, known := ranks[t]; !known {
			ranks[t] = 0
			distinct = append(distinct, t)
		}
	}
	slices.Sort(distinct)
	for i, t := range distinct {
		ranks[t] = i
	}
	return ranks
}

// rankChains numbers the messages in the order of their hook, layer and shard.
func rankChains(refs []Ref) map[*Message]int {
	ranks := map[*Message]int{}
	for _, r := range refs {
		ranks[r.Message] = 0
	}
	messages := make([]*Message, 0, len(ranks))
	for m := range ranks {
		messages = append(messages, m)
	}
	order := func(a, b *Message) int {
		x, y := &a.Header, &b.Header
		return cmp.Or(strings.Compare(x.Hook, y.Hook), cmp.Compare(x.Layer, y.Layer), cmp.Compare(x.Shard, y.Shard))
	}
	slices.SortFunc(messages, order)
	rank := 0
	for i, m := range messages {
		if i > 0 && order(messages[i-1], m) != 0 {
			rank++
		}
		ranks[m] = rank
	}
	return ranks
}
