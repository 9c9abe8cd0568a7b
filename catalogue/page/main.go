// Command page writes METRICS.md from the catalogue, in the folder above the one
// where it runs, as go generate does.
package main

import (
	"fmt"
	"os"

	"sonde/catalogue"
)

func main() {
	if err := os.WriteFile("../METRICS.md", []byte(catalogue.Page()), 0o644); err != nil {
		fmt.Fprintf(os.Stderr, "write METRICS.md: %v\n", err)
		os.Exit(1)
	}
}
