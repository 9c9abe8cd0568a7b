package fleet

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestATrialEmptiesNoFolderOfSomebodyElse(t *testing.T) {
	dir := t.TempDir()
	thesis := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(thesis, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := EmptyFolder(dir); err == nil || !strings.Contains(err.Error(), "holds thesis.txt") {
		t.Errorf("got %v for a folder with a file of somebody else", err)
	}
	if _, err := os.Lstat(thesis); err != nil {
		t.Error(err)
	}
}

func TestATrialEmptiesTheFolderOfTheLastOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	for range 2 {
		made, err := EmptyFolder(dir)
		if err != nil || made != dir {
			t.Fatalf("got %q, %v; want %q", made, err, dir)
		}
		left := filepath.Join(dir, "left")
		if _, err := os.Lstat(left); err == nil {
			t.Error("what the last trial left is still there")
		}
		if err := os.WriteFile(left, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
