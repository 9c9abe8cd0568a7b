// Package edges takes real processes of Sonde to the ends of what a machine has:
// disks that are full or read-only, file descriptors, requests, tokens, rows and
// ranks in number and size, a clock that steps, and Ctrl-C at any moment. Each test
// says which fear it is about, and ends with the account of every row.
//
// The tests run in a mount namespace of their own, where they mount small file
// systems that nobody else sees. What this machine does not let them do is listed
// as not run.
package edges
