package modelconfig

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"sonde/spelling"
)

// spellings are the names of TransformerLens and others, by our names.
var spellings = map[string]string{
	"hook_resid_pre": "resid_pre", "hook_resid_mid": "resid_mid", "hook_resid_post": "resid_post",
	"hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out", "attn.hook_q": "q", "attn.hook_k": "k", "attn.hook_v": "v",
	"attn.hook_z": "z", "mlp.hook_post": "mlp_post", "ln1.hook_normalized": "ln1", "ln2.hook_normalized": "ln2",
	"mlp.hook_router_logits": "router_logits", "hook_embed": "embed", "hook_pos_embed": "pos_embed",
	"ln_final.hook_normalized": "ln_final", "hook_tokens": "token_ids", "unembed.hook_out": "logits",
	"final_ln": "ln_final", "final_logits": "logits", "input_ids": "token_ids", "embeddings": "embed",
}

// canonical translates a pattern into our names.
func canonical(pattern string) string {
	if ours, ok := spellings[pattern]; ok {
		return ours
	}
	if rest, ok := strings.CutPrefix(pattern, "blocks."); ok {
		if layer, name, ok := strings.Cut(rest, "."); ok && spellings[name] != "" {
			return spellings[name] + "." + layer
		}
	}
	return pattern
}

// Choose picks the hooks that any of the patterns names: "resid_post" of all
// layers, "resid_post.3" of one, "resid_*", or a name of TransformerLens.
func Choose(hooks []Hook, patterns []string) ([]Hook, error) {
	chosen := make([]bool, len(hooks))
	for _, p := range patterns {
		name, found := canonical(strings.TrimSpace(p)), false
		for i, h := range hooks {
			byHook, err := path.Match(name, h.Hook)
			byName, _ := path.Match(name, h.Name)
			if err != nil {
				return nil, fmt.Errorf("choose hooks by %q: it is no pattern: %w", p, err)
			}
			if byHook || byName {
				chosen[i], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("choose hooks by %q: the model has none of that name; nearest: %s", p,
				strings.Join(nearest(name, hooks), ", "))
		}
	}
	var out []Hook
	for i, h := range hooks {
		if chosen[i] {
			out = append(out, h)
		}
	}
	return out, nil
}

// nearest lists the three hooks whose names differ least from one. Long names are cut.
func nearest(name string, hooks []Hook) []string {
	hook, _, _ := strings.Cut(name, ".")
	hook = hook[:min(len(hook), 64)]
	var names []string
	for _, h := range hooks {
		if !slices.Contains(names, h.Hook) {
			names = append(names, h.Hook)
		}
	}
	slices.SortStableFunc(names, func(a, b string) int {
		return cmp.Compare(spelling.Distance(hook, a), spelling.Distance(hook, b))
	})
	return names[:min(3, len(names))]
}
