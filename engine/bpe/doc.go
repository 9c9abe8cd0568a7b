// Package bpe turns text into the token ids of a Hugging Face tokenizer.json and
// back: byte-level BPE as of GPT-2, with the same ids for every text.
//
// Text is cut at the special tokens that stand in it, then into words by the
// rule in words.go; the bytes of each word are merged pair by pair, the pair
// that was learnt first before the others.
package bpe
