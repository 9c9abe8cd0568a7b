package faultdisk

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"sonde/internal/notrun"
	"sonde/trials/fleet"
)

func TestMain(m *testing.M) {
	if again, code := fleet.InNamespace(); !again {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func mount(t *testing.T) *Disk {
	t.Helper()
	d, err := New(t.TempDir(), "disk", 4)
	if errors.Is(err, fleet.ErrNotHere) {
		notrun.Mark(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// A disk without a fault must be one: what programs do with files works and stays.
func TestASoundDiskIsADisk(t *testing.T) {
	d := mount(t)
	dir := filepath.Join(d.Dir, "a", "b")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	from, to := filepath.Join(dir, "from"), filepath.Join(d.Dir, "to")
	if err := os.WriteFile(from, []byte("what was written"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(from, to), os.Link(to, from), os.Remove(from), os.Remove(dir)); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write([]byte(", and more"))
	if err := errors.Join(err, f.Sync(), f.Truncate(20), f.Close()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to); string(got) != "what was written, an" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	again, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		again.Close()
		t.Error("a file was made that exists: put-if-absent would not hold")
	}
}

// Each fault is felt through a file that was opened before it, and no longer when it ends.
func TestEachFaultIsFeltByAnOpenFileAndEnds(t *testing.T) {
	d := mount(t)
	f, err := os.Create(filepath.Join(d.Dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	try := func() (write, sync, make error) {
		_, write = f.WriteAt([]byte("12345"), 0)
		sync = f.Sync()
		g, make := os.Create(filepath.Join(d.Dir, "other"))
		if make == nil {
			g.Close()
		}
		return write, sync, make
	}
	for _, c := range []struct {
		mode              Mode
		write, sync, make error
	}{
		{FailWrites, syscall.EIO, syscall.EIO, syscall.EIO},
		{FailSyncs, nil, syscall.EIO, nil},
		{ReadOnly, syscall.EROFS, syscall.EIO, syscall.EROFS},
		{Slow, nil, nil, nil},
		{Sound, nil, nil, nil},
	} {
		d.Set(c.mode)
		write, sync, make := try()
		if !errors.Is(write, c.write) || !errors.Is(sync, c.sync) || !errors.Is(make, c.make) {
			t.Errorf("mode %d: write %v, fsync %v, create %v", c.mode, write, sync, make)
		}
		d.Set(Sound)
		if write, sync, make := try(); write != nil || sync != nil || make != nil {
			t.Errorf("after mode %d: write %v, fsync %v, create %v", c.mode, write, sync, make)
		}
	}
	if d.Refused() != 7 {
		t.Errorf("%d requests were refused", d.Refused())
	}
}

func TestAFullDiskTakesNothingUntilItIsFreed(t *testing.T) {
	d := mount(t)
	name := filepath.Join(d.Dir, "file")
	if err := os.WriteFile(name, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Fill(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name+"2", make([]byte, 64<<10), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	if err := d.Free(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name+"2", make([]byte, 64<<10), 0o600); err != nil {
		t.Error(err)
	}
}
