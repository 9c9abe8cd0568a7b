package edges

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"sonde/internal/notrun"
	"sonde/trials/fleet"
)

// sondeBinary is the sonde that all tests run, built once.
var sondeBinary = sync.OnceValues(buildSonde)

var scratch string // folder of the binary

func TestMain(m *testing.M) {
	if again, code := fleet.InNamespace(); !again {
		os.Exit(code)
	}
	var err error
	if scratch, err = os.MkdirTemp("", "sonde-edges-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch) // What is left of it is in the folder for temporary files.
	os.Exit(code)
}

func buildSonde() (string, error) {
	out := filepath.Join(scratch, "sonde")
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, "sonde/cmd/sonde")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build sonde: %w: %s", err, text)
	}
	return out, nil
}

// disk mounts a file system of so many MiB in memory, for this test alone.
func disk(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	unmount, err := fleet.MountDisk(dir, mib)
	if errors.Is(err, fleet.ErrNotHere) {
		notrun.Mark(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes the last byte of a disk, and returns how to give it back.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	give, err := fleet.Fill(dir)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := give(); err != nil {
			t.Fatal(err)
		}
	}
}
