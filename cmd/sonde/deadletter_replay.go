package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"sonde/bus"
	"sonde/deadletter"
	"sonde/schema"
)

func deadletterReplayCommand(f *deadFlags) *cobra.Command {
	r := replayed{f: f}
	c := &cobra.Command{
		Use:   "replay NAME... | --all",
		Short: "Publish dead letters again, once their cause was mended",
		Long: `Publish dead letters again, as they were: after the broker was told to take larger messages, or with
a release that can read them. A letter that this release cannot read is left out, with the reason.

Each row has its identity, so that a letter that is replayed twice, or that had arrived after all, is
stored once. sonde lake verify counts its rows as stored from then on, no longer as dead-lettered.

  sonde deadletter replay 1f0c 77ab     two of them, by the first digits of their names
  sonde deadletter replay --all --remove   all, and remove each file that the bus acknowledged

The files stay without --remove. Exit code 1: not every letter was published.`,
		RunE: func(c *cobra.Command, args []string) error {
			if r.all == (len(args) > 0) {
				return usageError{errors.New("name the letters to replay, or write --all; see sonde deadletter list")}
			}
			return r.run(c, args)
		},
	}
	c.Flags().BoolVar(&r.all, "all", false, "replay every letter")
	c.Flags().BoolVar(&r.remove, "remove", false, "remove the file of each letter that the bus acknowledged")
	return c
}

// replayed is one run of replay.
type replayed struct {
	f           *deadFlags
	all, remove bool
	published   int
}

func (r *replayed) run(c *cobra.Command, names []string) error {
	if err := r.f.load(); err != nil {
		return err
	}
	entries, err := r.chosen(names)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		_, err := fmt.Fprintln(c.OutOrStdout(), "there are no dead letters")
		return err
	}
	b, err := openExistingBus(c, r.f.conf.Bus)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		err := r.one(c.Context(), b, e)
		if c.Context().Err() != nil {
			failed = []error{c.Context().Err()}
			break
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		r.published++
		fmt.Fprintf(c.OutOrStdout(), "%s: published\n", filepath.Base(e.Path))
	}
	fmt.Fprintf(c.OutOrStdout(), "%d of %d dead letters were published\n", r.published, len(entries))
	return errors.Join(append(failed, b.Close())...)
}

func (r *replayed) chosen(names []string) ([]deadletter.Entry, error) {
	if r.all {
		return r.f.entries()
	}
	var out []deadletter.Entry
	for _, name := range names {
		e, err := r.f.find(name)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// one publishes a letter and waits for the answer.
func (r *replayed) one(ctx context.Context, b bus.Bus, e deadletter.Entry) error {
	l, err := deadletter.Read(e.Path)
	if err != nil {
		return err
	}
	name := filepath.Base(e.Path)
	batch, err := schema.Decode(l.Data)
	if err != nil {
		return fmt.Errorf("replay %s: this release cannot read the message: %w", name, err)
	}
	h := batch.Header
	answered := make(chan error, 1)
	m := bus.Message{Subject: schema.Subject(h), ID: schema.MessageID(h), Data: l.Data}
	if err := b.Publish(ctx, m, func(_ uint64, err error) { answered <- err }); err != nil {
		return fmt.Errorf("replay %s: %w", name, err)
	}
	if err := <-answered; err != nil {
		return fmt.Errorf("replay %s: %w", name, err)
	}
	if r.remove {
		if err := os.Remove(e.Path); err != nil {
			return fmt.Errorf("remove the letter that was published: %w", err)
		}
	}
	return nil
}
