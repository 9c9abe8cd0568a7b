// Package ring2 is the host half of Ring²: a ring in shared memory that carries
// what a model computes from the inference process to the agent.
//
// One Writer in the engine owns one ring. It never waits for its reader, unless
// its mode is Complete, and then never longer than the step stall budget. One
// Session in the agent reads it. Each side publishes one word: the writer the
// commit word of a descriptor, the reader release_seq.
//
// ABI.md documents every byte. The logic works on plain memory (core_writer.go,
// core_step.go, core_reader.go); mapping, sockets and the journal are edges in
// files of their own. A Listener of the agent takes the ranks' connections.
package ring2

//go:generate go run ./internal/abigen ring2_abi.h abi.go
