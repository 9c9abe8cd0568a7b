// Package readers holds tests that read a dataset with programs and libraries that
// nobody here wrote, in Go and in Java. Those in Python are in hookpoint/tests.
package readers
