// Package server is the engine's HTTP interface: completions as OpenAI's clients
// know them, aborts, and metrics.
//
// Of OpenAI's parameters it serves model, prompt (text or token ids), max_tokens,
// temperature, top_p, n, seed, stop, stream, stream_options and user. Others are
// refused unless they ask for nothing, and so are parameters that nobody knows.
// The object "sonde" in a request is our own: what the dataset should say about
// it. A request_id may be used again once its request has ended; until then a
// second one is refused with 409.
package server
