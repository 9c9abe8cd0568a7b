package edges

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sonde/internal/notrun"
)

// What cannot run must say so in a sentence and end, not wait or show a stack.
func TestAReadOnlyDiskAtTheStartIsOneSentence(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"store", "lake", "recording"} {
		t.Run(place, func(t *testing.T) {
			dir := disk(t, 4)
			s := setup{}
			switch place {
			case "store":
				s.store = dir
			case "lake":
				s.lake = dir
			}
			r := newRig(t, s)
			readOnly(t, dir)
			args := []string{"run", "--config", r.config}
			if place == "recording" {
				args = []string{"record", "--socket", r.socket, "--out", dir}
			}
			out, code := sonde(t, args...)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			last := lines[len(lines)-1]
			if code != 1 || !strings.HasPrefix(last, "sonde: ") || !strings.Contains(last, dir) ||
				!strings.Contains(last, "read-only file system") || strings.Contains(out, "goroutine ") {
				t.Errorf("exit code %d and output\n%s", code, out)
			}
		})
	}
}

// A disk with an error turns read-only under open files, and stays so until it is
// unmounted: everybody must say so, end when asked to, and go on from there later.
func TestADiskThatTurnsReadOnlyUnderWayLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	t.Run("store", func(t *testing.T) {
		d := newBreakable(t)
		r := newRig(t, setup{store: filepath.Join(d.dir, "bus")})
		r.start()
		r.startEngine("--ring-bytes", "256KiB")
		stop := r.load()
		r.await("rows in the lake", func() bool { return r.stored() > 500 })
		d.breakDown()
		r.starve()
		r.end()
		d.repair()
		r.start()
		r.await("rows on the bus again", func() bool { return r.acknowledged() > 500 })
		stop()
		if a := r.judge(); a.DroppedRows() == 0 {
			t.Errorf("nothing was dropped: the disk was never felt\n%v", a)
		}
	})
	t.Run("lake", func(t *testing.T) {
		d := newBreakable(t)
		r := newRig(t, setup{lake: filepath.Join(d.dir, "lake")})
		r.start()
		r.startEngine()
		stop := r.load()
		r.await("rows in the lake", func() bool { return r.stored() > 500 })
		d.breakDown()
		r.lakeWaits("read-only file system")
		r.end()
		d.repair()
		r.start()
		stop()
		r.judge()
	})
	t.Run("recording", func(t *testing.T) {
		d := newBreakable(t)
		r := newRig(t, setup{})
		dir := filepath.Join(d.dir, "recording")
		r.record(dir)
		r.startEngine("--ring-bytes", "256KiB")
		stop := r.load()
		r.await("a recording that grows", func() bool { return size(dir) > 64<<10 })
		d.breakDown()
		r.recordingEnded(dir, "read-only file system")
		r.goOnAfter(dir)
		stop()
		r.judge()
	})
}

// readOnly makes a mounted disk refuse writes.
func readOnly(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatalf("remount %s read-only: %v", dir, err)
	}
}

// breakable is a disk in a file, with a file system that turns read-only when it
// meets an error.
type breakable struct {
	t          *testing.T
	image, dir string
	device     string // name below /dev
}

func newBreakable(t *testing.T) *breakable {
	t.Helper()
	if os.Getuid() != 0 {
		notrun.Mark(t, "a file system that turns read-only needs root")
	}
	for _, tool := range []string{"mkfs.ext4", "e2fsck", "mount", "umount", "findmnt"} {
		if _, err := exec.LookPath(tool); err != nil {
			notrun.Mark(t, "a file system that turns read-only needs "+tool)
		}
	}
	d := &breakable{t: t, image: filepath.Join(disk(t, 96), "image"), dir: t.TempDir()}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, 64<<20); err != nil {
		t.Fatal(err)
	}
	d.must("mkfs.ext4", "-q", "-F", "-O", "^has_journal", d.image)
	if err := d.mount(); err != nil {
		notrun.Mark(t, fmt.Sprintf("this machine mounts no file system from a file: %v", err))
	}
	t.Cleanup(func() { d.must("umount", "--lazy", d.dir) })
	if _, err := os.Stat(d.trigger()); err != nil {
		notrun.Mark(t, fmt.Sprintf("this kernel makes no errors of file systems on request: %v", err))
	}
	return d
}

func (d *breakable) must(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

func (d *breakable) mount() error {
	if out, err := exec.Command("mount", "-o", "loop,errors=remount-ro", d.image, d.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	out, err := exec.Command("findmnt", "--noheadings", "--output", "SOURCE", d.dir).Output()
	d.device = filepath.Base(strings.TrimSpace(string(out)))
	return err
}

func (d *breakable) trigger() string { return "/sys/fs/ext4/" + d.device + "/trigger_fs_error" }

// breakDown turns the disk read-only while files are open on it.
func (d *breakable) breakDown() {
	d.t.Helper()
	if err := os.WriteFile(d.trigger(), []byte("the test wants it"), 0o200); err != nil {
		d.t.Fatal(err)
	}
}

// repair does what a person does: unmount, check, mount again. Nobody may have a
// file open there.
func (d *breakable) repair() {
	d.t.Helper()
	d.must("umount", d.dir)
	if out, err := exec.Command("e2fsck", "-p", "-f", d.image).CombinedOutput(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() > 1 { // 1: mended
			d.t.Fatalf("e2fsck: %v: %s", err, out)
		}
	}
	if err := d.mount(); err != nil {
		d.t.Fatal(err)
	}
}
