package main

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sonde/lakehouse"
	"sonde/lakehouse/table"
	"sonde/schema"
)

// watch reads each new file of requests in the dataset once, and remembers which
// requests ended there.
type watch struct {
	dir  string
	lake *lakehouse.Lake // nil before it exists
	seen int             // files

	mu    sync.Mutex
	ended map[string]time.Time
	why   error // why the dataset could not be read, the last time
}

func newWatch(dir string) *watch { return &watch{dir: dir, ended: map[string]time.Time{}} }

const watchEvery = 150 * time.Millisecond

func (w *watch) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := w.look()
		w.mu.Lock()
		w.why = err
		w.mu.Unlock()
		_ = pause(ctx, watchEvery) // The condition of the loop asks for its error.
	}
}

func (w *watch) look() error {
	var err error
	if w.lake == nil {
		w.lake, err = lakehouse.Open(w.dir)
	} else {
		err = w.lake.Refresh()
	}
	if err != nil {
		return err
	}
	files := w.lake.Files()
	for _, f := range files[min(w.seen, len(files)):] {
		if f.Table == string(table.Requests) {
			if err := w.read(filepath.Join(w.dir, filepath.FromSlash(f.Path)), f.Bytes); err != nil {
				return err
			}
		}
		w.seen++
	}
	return nil
}

func (w *watch) read(path string, size int64) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return table.ReadRequests(file, size, &table.Query{}, func(r *table.RequestEvent) error {
		if r.Row.Event == schema.EventEnd {
			w.mu.Lock()
			w.ended[r.Row.Request] = time.Now()
			w.mu.Unlock()
		}
		return nil
	})
}

// has says whether a request ended in the dataset.
func (w *watch) has(request string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.ended[request]
	return ok
}

// trouble is why the dataset cannot be read.
func (w *watch) trouble() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.why
}
