package modelconfig

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// keys takes values out of a configuration. The first error sticks.
type keys struct {
	at, top map[string]any // the part that describes the layers, and the whole
	err     error
}

// find returns the value of the first key that is there and not null.
func (k *keys) find(names ...string) (name string, value any) {
	for _, n := range names {
		if v := k.at[n]; v != nil {
			return n, v
		}
	}
	return names[0], nil
}

func (k *keys) has(name string) bool { return k.at[name] != nil }

func (k *keys) fail(format string, args ...any) {
	if k.err == nil {
		k.err = fmt.Errorf(format, args...)
	}
}

func (k *keys) text(name string) string {
	s, ok := k.at[name].(string)
	if v := k.at[name]; v != nil && !ok {
		k.fail("%s is %s; want a text", name, shown(v))
	}
	return s
}

// number takes a size from 1 to most, which must be there unless it has a
// standard value.
func (k *keys) number(most, standard int, names ...string) int {
	if n := k.optional(most, standard, names...); n > 0 {
		return n
	}
	k.fail("%s is missing", strings.Join(names, " or "))
	return 1
}

// optional takes a size from 1 to most, or its standard value when it is not
// there.
func (k *keys) optional(most, standard int, names ...string) int {
	name, v := k.find(names...)
	if v == nil {
		return standard
	}
	return k.whole(name, v, 1, most)
}

func (k *keys) whole(name string, v any, least, most int) int {
	number, ok := v.(json.Number)
	n, err := strconv.Atoi(number.String())
	if !ok || err != nil || n < least || n > most {
		k.fail("%s is %s; want a whole number from %d to %d", name, shown(v), least, most)
		return least
	}
	return n
}

// list takes whole numbers from 0 to most.
func (k *keys) list(name string, most int) []int {
	v := k.at[name]
	if v == nil {
		return nil
	}
	items, ok := v.([]any)
	if !ok || len(items) > maxLayers {
		k.fail("%s is %s; want a list of at most %d layers", name, shown(v), maxLayers)
		return nil
	}
	var out []int
	for _, item := range items {
		out = append(out, k.whole(name, item, 0, most))
	}
	return out
}

func (k *keys) divide(hidden, heads int) int {
	if hidden%heads != 0 {
		k.fail("hidden size %d is no multiple of its %d heads, and head_dim is not given", hidden, heads)
	}
	return max(1, hidden/heads)
}

// dtypes are the types of activations by their names in torch. A model whose
// configuration names none computes in f32.
var dtypes = map[string]string{"": "f32", "float32": "f32", "float": "f32", "float16": "f16", "half": "f16",
	"bfloat16": "bf16"}

func (k *keys) dtype() string {
	for _, part := range [...]map[string]any{k.at, k.top} {
		for _, name := range [...]string{"dtype", "torch_dtype"} {
			v := part[name]
			if v == nil {
				continue
			}
			text, _ := v.(string)
			d, ok := dtypes[strings.TrimPrefix(text, "torch.")]
			if !ok || text == "" {
				k.fail("%s is %s; want float32, float16 or bfloat16", name, shown(v))
			}
			return d
		}
	}
	return dtypes[""]
}

// shown is a value as an error shows it.
func shown(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "something else"
	}
	if len(b) > 40 {
		return string(b[:40]) + "…"
	}
	return string(b)
}
