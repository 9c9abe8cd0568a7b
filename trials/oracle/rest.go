package oracle

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sonde/engine/witness"
	"sonde/lakehouse"
	"sonde/lakehouse/account"
	"sonde/schema"
	"sonde/trials/fleet"
)

// AwaitRest waits until the lake is at rest: every epoch that the engine
// witnessed is known to the ledger, every epoch is closed, and no row is in
// flight. The engine runs no more, so its witness is complete. It returns the
// account, whether or not that balances, and an error that says what is still
// under way after limit.
func AwaitRest(ctx context.Context, lakeDir, witnessDir string, limit time.Duration) (*account.Account, error) {
	witnessed, err := witnessedEpochs(witnessDir)
	if err != nil {
		return nil, err
	}
	var out *account.Account
	err = await(ctx, lakeDir, limit, func(ctx context.Context, lake *lakehouse.Lake) error {
		var err error
		out, err = atRest(ctx, lake, witnessed)
		return err
	})
	return out, err
}

// AwaitObituaries waits until every epoch is closed but those of the engines that run,
// the newest of each witness: they tell what died with those before them. Each engine
// has a folder for its witness.
func AwaitObituaries(ctx context.Context, lakeDir string, limit time.Duration, witnessDirs ...string) error {
	witnessed, running := map[uint64]bool{}, map[string]bool{}
	for _, dir := range witnessDirs {
		epochs, err := witnessedEpochs(dir)
		if err != nil {
			return err
		}
		maps.Copy(witnessed, epochs)
		newest, err := newestEpoch(dir)
		if err != nil {
			return err
		}
		running[newest] = true
	}
	return await(ctx, lakeDir, limit, func(ctx context.Context, lake *lakehouse.Lake) error {
		open, err := openEpochs(ctx, lake, witnessed)
		open = slices.DeleteFunc(open, func(id string) bool { return running[id] })
		if err == nil && len(open) > 0 {
			err = fmt.Errorf("%d epochs are not closed: %s", len(open), strings.Join(open, " "))
		}
		return err
	})
}

// newestEpoch is the epoch of the witness file that was written to last, in 16
// hex digits.
func newestEpoch(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.witness"))
	if err != nil {
		return "", fmt.Errorf("list the engine's witness: %w", err)
	}
	var newest string
	var when time.Time
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			return "", fmt.Errorf("list the engine's witness: %w", err)
		}
		if info.ModTime().After(when) {
			newest, when = strings.TrimSuffix(filepath.Base(name), ".witness"), info.ModTime()
		}
	}
	return newest, nil
}

// await asks each new version of a lake until there is nothing to wait for.
func await(ctx context.Context, lakeDir string, limit time.Duration,
	waiting func(context.Context, *lakehouse.Lake) error) error {
	// The limit is for the pipeline, not for the reader: a look that has begun may end.
	patience, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var why error
	version, looked := uint64(0), false
	for {
		lake, err := lakehouse.Open(lakeDir)
		if err != nil {
			why = err
		} else if !looked || lake.Version() != version {
			version, looked = lake.Version(), true
			if why = waiting(ctx, lake); why == nil {
				return nil
			}
		}
		select {
		case <-patience.Done():
			return fmt.Errorf("wait for rest in %s: after %v, at version %d: %w", lakeDir, limit, version, why)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// atRest is the account of a lake at rest, or an error that says what is under
// way.
func atRest(ctx context.Context, lake *lakehouse.Lake, witnessed map[uint64]bool) (*account.Account, error) {
	open, err := openEpochs(ctx, lake, witnessed)
	if err != nil {
		return nil, err
	}
	if len(open) > 0 {
		return nil, fmt.Errorf("%d epochs are not closed: %s", len(open), strings.Join(open, " "))
	}
	a, err := lake.Account(ctx)
	if err != nil {
		return nil, err
	}
	if !a.AtRest() {
		return nil, fmt.Errorf("the account is not at rest:\n%v", a)
	}
	return a, nil
}

// openEpochs names the epochs that somebody knows of and no fact closes, or whose
// end left rows unnamed, which the next engine's obituary then names.
func openEpochs(ctx context.Context, lake *lakehouse.Lake, witnessed map[uint64]bool) ([]string, error) {
	closed, told, unnamed := map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{}
	for id := range witnessed {
		closed[id] = false
	}
	err := lake.Ledger(ctx, lakehouse.Query{}, func(f *lakehouse.Fact) error {
		closed[f.Epoch] = closed[f.Epoch] || f.Fact == schema.FactClosed
		told[f.Epoch] = told[f.Epoch] || f.Fact == schema.FactClosed && account.ToldByObituary(f.Detail)
		unnamed[f.Epoch] = unnamed[f.Epoch] || f.Fact == schema.FactMissing && f.Reason == account.ReasonUnnamed
		return nil
	})
	var open []string
	for id, done := range closed {
		if !done || unnamed[id] && !told[id] {
			open = append(open, fmt.Sprintf("%016x", id))
		}
	}
	return open, err
}

// witnessedEpochs lists the epochs in which the engine witnessed a row.
func witnessedEpochs(dir string) (map[uint64]bool, error) {
	out := map[uint64]bool{}
	err := witness.Read(dir, func(r witness.Row) error {
		out[r.Epoch] = true
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the epochs of the engine's witness: %w", err)
	}
	return out, nil
}

// Settle stops the engine of a pipeline, waits until its lake is at rest, and
// stops the rest. It gives the account of the lake and the two laws as the agent
// counted them until then.
func Settle(ctx context.Context, pipe *fleet.Pipeline) (*account.Account, Laws, error) {
	if err := pipe.Engine.Stop(60 * time.Second); err != nil {
		return nil, Laws{}, err
	}
	out, err := AwaitRest(ctx, pipe.Lake, pipe.Witness, 3*time.Minute)
	if err != nil {
		return nil, Laws{}, err
	}
	metrics, err := pipe.AgentMetrics()
	if err != nil {
		return nil, Laws{}, err
	}
	pending, err := Pending(ctx, pipe.BusURL(), pipe.Lake)
	if err != nil {
		return nil, Laws{}, err
	}
	return out, LawsOf(metrics, out, pending), pipe.StopAll()
}
