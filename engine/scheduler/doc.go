// Package scheduler runs requests through a model with continuous batching. One
// goroutine owns everything: before each step it takes in new requests and
// aborts, plans ranges of tokens of many sequences, lets the model compute them,
// and samples.
//
// A request is one prompt and n samples; each sample is a sequence with a number
// of its own. The first sample computes the prompt, the others fork from it and
// share its KV blocks until they write.
//
// The tokens of a request depend on its prompt, its parameters and its seed
// alone, never on batching, chunking, prefix hits, preemption or time.
package scheduler
