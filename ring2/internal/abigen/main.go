// Command abigen writes ring2/abi.go from ring2/ring2_abi.h. It reads the
// constrained C that the header promises, so generating needs no C compiler.
//
//	abigen HEADER OUTPUT
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: abigen HEADER OUTPUT")
		os.Exit(2)
	}
	header, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Fprintf(os.Stderr, "abigen: %v\n", err)
		os.Exit(1)
	}
	text, err := Generate(string(header))
	if err != nil {
		fmt.Fprintf(os.Stderr, "abigen: %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
	if err := os.WriteFile(os.Args[2], text, 0o644); err != nil {
		fmt.Fprintf(os.Stderr, "abigen: %v\n", err)
		os.Exit(1)
	}
}
