package deadletter

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

func letter(i int) Letter {
	return Letter{From: FromAgent, When: time.Unix(int64(1000+i), 0).UTC(), Reason: fmt.Sprintf("reason %d", i),
		Subject: "sonde.v1.t.e.0.vectors.h.1", ID: fmt.Sprint("id-", i), Incarnation: "i", Partition: 2, Position: 7,
		Stored: time.Unix(5, 0).UTC(), Data: []byte(strings.Repeat("x", i))}
}

func TestALetterIsReadBackAsItWas(t *testing.T) {
	dir := t.TempDir()
	f, err := Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		want := letter(i)
		name, err := f.Put(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Read(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Data) == 0 {
			got.Data = []byte{}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v; want %+v", got, want)
		}
	}
	list, err := List(dir)
	if err != nil || len(list) != 20 || list[0].Reason != "reason 0" || list[19].Reason != "reason 19" {
		t.Errorf("list %+v, %v", list, err)
	}
}

func TestTheSameMessageIsKeptOnceAlsoByTwoAtATime(t *testing.T) {
	dir := t.TempDir()
	f, err := Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 10 {
				l := letter(i)
				l.When = time.Now()
				if _, err := f.Put(l); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	files, bytes := f.Size()
	again, err := Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	files2, bytes2 := again.Size()
	if files != 10 || files2 != 10 || bytes != bytes2 {
		t.Errorf("%d files of %d bytes; after a restart %d of %d", files, bytes, files2, bytes2)
	}
}

func TestAFullFolderAndNoFolderSayThatTheyAreFull(t *testing.T) {
	dir := t.TempDir()
	f, err := Open(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for i := range 20 {
		if _, err := f.Put(letter(i)); err == nil {
			kept++
		} else if !errors.Is(err, ErrFull) {
			t.Error(err)
		}
	}
	if _, bytes := f.Size(); kept < 2 || kept > 6 || bytes > 1000 {
		t.Errorf("%d are kept in %d bytes", kept, bytes)
	}
	none, err := Open("", 1000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.Put(letter(1)); !errors.Is(err, ErrFull) {
		t.Errorf("without a folder: %v", err)
	}
}

func TestTornChangedAndForeignFilesAreErrorsAndHideNothing(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	f, err := Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	name, err := f.Put(letter(50))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		b := append([]byte(nil), whole...)
		if i%2 == 0 {
			b = b[:rng.IntN(len(b))]
		} else {
			b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		}
		path := filepath.Join(dir, "bad.dead")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if l, err := Read(path); err == nil {
			t.Errorf("a damaged file is read as %+v", l)
		}
	}
	killed, running := filepath.Join(dir, ".tmp-1"), filepath.Join(dir, ".tmp-2")
	for _, path := range []string{killed, running} {
		if err := os.WriteFile(path, []byte("torn"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(killed, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	list, err := List(dir)
	if err != nil || len(list) != 2 || list[0].Err == nil || list[1].Err != nil {
		t.Errorf("list %+v, %v", list, err)
	}
	if _, err := Open(dir, 1<<20); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(killed); !os.IsNotExist(err) {
		t.Errorf("the torn file of a killed writer is still there: %v", err)
	}
	if _, err := os.Stat(running); err != nil {
		t.Errorf("the file of a running writer is gone: %v", err)
	}
}

func TestAFolderWithSignsOfPatternsInItsName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b]*?")
	f, err := Open(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Put(letter(1)); err != nil {
		t.Fatal(err)
	}
	if list, err := List(dir); err != nil || len(list) != 1 {
		t.Errorf("list %v, %v", list, err)
	}
	if list, err := List(filepath.Join(dir, "none")); err != nil || list != nil {
		t.Errorf("a folder that does not exist: %v, %v", list, err)
	}
}

func TestANoteFitsABroadcastWhateverTheLetterSays(t *testing.T) {
	l := letter(1)
	l.Reason, l.Subject, l.ID = strings.Repeat("\x01", 1<<20), strings.Repeat("é", 1<<20), strings.Repeat("<", 1<<20)
	n := Tell("name.dead", l)
	if len(n) > 64<<10 {
		t.Errorf("a note has %d bytes", len(n))
	}
	got, err := ReadNote(n)
	if err != nil || got.Name != "name.dead" || got.Bytes != 1 || got.Position != 7 {
		t.Errorf("note %+v, %v", got, err)
	}
	if _, err := ReadNote([]byte("x")); err == nil {
		t.Error("nonsense is a note")
	}
}
