// Package dot computes dot products of a row of numbers, as it was captured or
// as a weight file holds it, with a float32 vector: the inner loop of every
// linear probe and of the reference engine.
//
// On amd64 it runs in assembly with AVX-512, else with AVX2, FMA and F16C; these
// two give the same bits. Everywhere else, and on older processors, it is plain
// Go. Any result is the same each time on one machine, and lies within
//
//	(n/8 + 8) * 2^-23 * sum(|a[i]*b[i]|) + n * 2^-149
//
// of the exact one, n being the number of elements, unless a partial sum
// overflows. NaN and Inf spread as in any sum. The machine is little-endian.
package dot
