package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// The header is the truth: a change of it that nobody generated from would make
// two peers read different bytes.
func TestCheckedInABIIsWhatTheHeaderGenerates(t *testing.T) {
	header, err := os.ReadFile("../../ring2_abi.h")
	if err != nil {
		t.Fatal(err)
	}
	want, err := Generate(string(header))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../abi.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("abi.go is not what ring2_abi.h generates: run go generate ./ring2")
	}
}

// A line that the generator does not understand must not vanish silently.
func TestGeneratorRefusesWhatItDoesNotUnderstand(t *testing.T) {
	const good = "#define RING2_X 1\nstruct ring2_a {\n    uint32_t a; /* a */\n};\n"
	if _, err := Generate(good); err != nil {
		t.Fatalf("a good header is refused: %v", err)
	}
	for name, bad := range map[string]string{
		"a type of unknown width": strings.Replace(good, "uint32_t", "int", 1),
		"a field without comment": strings.Replace(good, " /* a */", "", 1),
		"two fields in a line":    strings.Replace(good, "a; /*", "a, b; /*", 1),
		"a pointer":               strings.Replace(good, "uint32_t a", "uint32_t *a", 1),
		"a struct without an end": strings.Replace(good, "};\n", "", 1),
		"no structs":              "#define RING2_X 1\n",
		"an empty file":           "",
	} {
		if out, err := Generate(bad); err == nil {
			t.Errorf("%s is accepted:\n%s", name, out)
		}
	}
}
