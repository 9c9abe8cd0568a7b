package config

import (
	"errors"
	"os"
	"testing"
)

// Any file is either valid or answered by an *Error whose every problem names a
// line, a key and what to write instead.
func FuzzParse(f *testing.F) {
	page, err := os.ReadFile(wrongPage)
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range wrongCase.FindAllStringSubmatch(string(page), -1) {
		f.Add([]byte(c[2] + "\n"))
	}
	example, err := os.ReadFile("../examples/sonde.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Fuzz(func(t *testing.T, text []byte) {
		_, err := Parse("fuzz.yaml", text)
		var wrong *Error
		if err == nil {
			return
		}
		if !errors.As(err, &wrong) || len(wrong.Problems) == 0 {
			t.Fatalf("got %v; want an *Error with problems", err)
		}
		for _, p := range wrong.Problems {
			if p.Line < 1 || p.Key == "" || p.Want == "" {
				t.Errorf("incomplete problem %+v", p)
			}
		}
	})
}
