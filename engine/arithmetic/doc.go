// Package arithmetic is a model for torture: it has no weights, and every value
// that a hook shows is a hash of where it stands, namely of (request, sample,
// position, hook, layer, pass, index). So a stored row proves by itself that it
// belongs where it is filed; Row computes what it has to be.
//
// Two things are no such hash. The hook token_ids shows the real token ids. And
// the logits that tokens are sampled from are a hash of the sequence's tokens
// alone, read through the KV blocks as attention does: a block that was lost,
// mixed up or overwritten changes every later token.
package arithmetic
