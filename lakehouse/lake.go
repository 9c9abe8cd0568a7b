package lakehouse

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"sonde/lakehouse/commitlog"
	"sonde/lakehouse/table"
	"sonde/schema"
)

// ErrNoLake: the folder holds no lake. The error that wraps it says what to do.
var ErrNoLake = commitlog.ErrNoLake

// Source is a position in one partition of a stream of the bus: everything before
// Next is in the lake.
type Source = commitlog.Source

// Totals count rows, duplicates and dead letters since the lake was made.
type Totals = commitlog.Totals

// Lake reads a lake. Its methods may be called from any goroutine, also while a
// materializer writes: each read sees the one commit that was newest at Open or at
// the last Refresh.
type Lake struct {
	dir   string
	state atomic.Pointer[commitlog.State]
}

// Open opens the newest commit of the lake in dir.
func Open(dir string) (*Lake, error) {
	state, err := commitlog.Load(dir)
	if err != nil {
		return nil, fmt.Errorf("open the lake: %w", err)
	}
	l := &Lake{dir: dir}
	l.state.Store(state)
	return l, nil
}

// Refresh goes on to the newest commit.
func (l *Lake) Refresh() error {
	state, err := l.state.Load().Refresh(l.dir)
	if err != nil {
		return fmt.Errorf("refresh the lake: %w", err)
	}
	l.state.Store(state)
	return nil
}

// Version is the number of the log's entry that is read. It only rises.
func (l *Lake) Version() uint64 { return l.state.Load().Version }

// Sources are the positions up to which the lake holds everything, by partition of
// the stream. A partition that was never read is not among them.
func (l *Lake) Sources() map[int]Source { return l.state.Load().Sources() }

// Totals are counts up to the version that is read.
func (l *Lake) Totals() Totals { return l.state.Load().Totals }

// read calls open for each file of a table that may match, in the order of the
// commits. Errors name the file.
func (l *Lake) read(ctx context.Context, name table.Name, epoch *uint64,
	open func(r io.ReaderAt, size int64) error) error {
	want := ""
	if epoch != nil {
		want = fmt.Sprintf("%016x", *epoch)
	}
	for _, f := range l.state.Load().Files {
		if f.Table != string(name) || want != "" && !slices.Contains(f.Epochs, want) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.readFile(f, open); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lake) readFile(f commitlog.File, open func(r io.ReaderAt, size int64) error) error {
	path := filepath.Join(l.dir, filepath.FromSlash(f.Path))
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open a file that the log names: %w", err)
	}
	defer file.Close() // was only read
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if info.Size() != f.Bytes {
		return fmt.Errorf("read %s: it has %d bytes and the log says %d: it was changed after it was committed", path,
			info.Size(), f.Bytes)
	}
	if err := open(file, f.Bytes); err != nil {
		if own, ok := err.(*callerError); ok {
			return own.error
		}
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// callerError is an error of a caller's callback, which no path is added to.
type callerError struct{ error }

// callback wraps f so that its errors and the end of ctx stop a scan.
func callback[R any](ctx context.Context, f func(*R) error) func(*R) error {
	return func(r *R) error {
		err := ctx.Err()
		if err == nil {
			err = f(r)
		}
		if err != nil {
			return &callerError{err}
		}
		return nil
	}
}

// Tokens calls f with the token ids that match q, until it returns an error.
func (l *Lake) Tokens(ctx context.Context, q Query, f func(*Token) error) error {
	return l.read(ctx, table.Tokens, q.Epoch, func(r io.ReaderAt, size int64) error {
		return table.ReadTokens(r, size, &q, callback(ctx, f))
	})
}

// Vectors calls f with the vectors that match q, until it returns an error. Row
// groups whose statistics exclude q's request, hook, layer, tenant, epoch, sample,
// position or pass are not read. The order is that of the commits; in a file, rows
// are ordered by request, hook, layer, shard, sample, position and pass. Raw is
// the callback's to keep.
func (l *Lake) Vectors(ctx context.Context, q Query, f func(*Vector) error) error {
	return l.vectors(ctx, q, false, f)
}

// vectors can leave Raw out.
func (l *Lake) vectors(ctx context.Context, q Query, keysOnly bool, f func(*Vector) error) error {
	return l.read(ctx, table.Vectors, q.Epoch, func(r io.ReaderAt, size int64) error {
		return table.ReadVectors(r, size, &q, keysOnly, callback(ctx, f))
	})
}

// VectorStats calls f with the figures that match q, until it returns an error.
func (l *Lake) VectorStats(ctx context.Context, q Query, f func(*VectorStats) error) error {
	return l.read(ctx, table.VectorStats, q.Epoch, func(r io.ReaderAt, size int64) error {
		return table.ReadStats(r, size, &q, callback(ctx, f))
	})
}

// Detections calls f with the verdicts that match q, until it returns an error.
func (l *Lake) Detections(ctx context.Context, q Query, f func(*schema.DetectionRow) error) error {
	// The epochs that the log lists for these files are those of detector runs.
	return l.read(ctx, table.Detections, nil, func(r io.ReaderAt, size int64) error {
		return table.ReadDetections(r, size, &q, callback(ctx, func(d *table.Detection) error { return f(&d.Row) }))
	})
}

// Ledger calls f with the facts that match q, until it returns an error. Facts
// about whole layouts match every hook and layer.
func (l *Lake) Ledger(ctx context.Context, q Query, f func(*Fact) error) error {
	return l.read(ctx, table.Ledger, q.Epoch, func(r io.ReaderAt, size int64) error {
		return table.ReadLedger(r, size, &q, callback(ctx, func(t *table.Fact) error { return f(factOf(t)) }))
	})
}

// factsOf calls f with the facts that say anything about a sequence, and perhaps with
// others of its epoch.
func (l *Lake) factsOf(ctx context.Context, s Sequence, f func(*Fact) error) error {
	return l.read(ctx, table.Ledger, &s.Epoch, func(r io.ReaderAt, size int64) error {
		each := callback(ctx, func(t *table.Fact) error { return f(factOf(t)) })
		return table.ReadSequence(r, size, s.Epoch, s.Number, each)
	})
}

func factOf(t *table.Fact) *Fact {
	return &Fact{Epoch: t.Epoch, Engine: t.Engine, Rank: t.Rank, Tenant: t.Tenant, LedgerRow: t.Row}
}

// CheckFiles reads every file that the log names and compares its bytes with the
// log's checksum. Its error names the first file that differs.
func (l *Lake) CheckFiles(ctx context.Context) error {
	for _, f := range l.state.Load().Files {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := l.readFile(f, func(r io.ReaderAt, size int64) error {
			sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
			if _, err := io.Copy(sum, io.NewSectionReader(r, 0, size)); err != nil {
				return err
			}
			if got := fmt.Sprintf("%08x", sum.Sum32()); got != f.CRC32C {
				return fmt.Errorf("its checksum is %s and the log says %s: it was damaged after it was committed", got, f.CRC32C)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
