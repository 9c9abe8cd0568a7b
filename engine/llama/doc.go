// Package llama runs a small language model of the Llama architecture from
// Hugging Face files: config.json and model.safetensors with bfloat16 weights.
//
// It computes in float32 and keeps keys and values in float32 in blocks. What a
// token gets depends on its own sequence only, bit for bit: each number is the
// same sum in the same order, whatever else the step computes and however the
// tokens were cut into steps. So a sequence that was preempted and is computed
// again gives the same rows.
//
// A step is cut by rows, of which each thread carries its own through all
// layers. The threads wait for each other once a layer, when all keys and values
// of the layer are stored.
//
// Hidden states and logits agree with Hugging Face transformers on the same
// weights, in float32 on a CPU, within 5e-6 of the largest number of each
// tensor; folder train holds the script that wrote the fixture.
package llama
