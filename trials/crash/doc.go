// Package crash tests the way from an engine to the bus while both of its ends
// die: the engine is a process of its own that is killed, the agent and the
// broker are taken away and brought back, hundreds of times in a few seconds. The
// broker is one in memory, so that the test is fast; trials/torture does the same
// to a whole pipeline of real processes.
package crash
