// Package capture connects a model's hooks with the ring: it chooses hooks,
// defines layouts, and gives the model the ring's own memory to write into, so
// that no row is copied on its way out. It also shows each row to the witness,
// those too that the ring had no room for.
package capture
