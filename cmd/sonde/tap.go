package main

import (
	"fmt"
	"os"
	"path"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"sonde/cmd/sonde/ringtap"
)

func tapCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "tap",
		Short: "Look into what flows, live and without being noticed",
		Long: `Look into what flows.

  sonde tap ring --follow         what an engine puts into its ring, also while the agent hangs
  sonde tap bus                   what flows over the bus`,
	}
	c.AddCommand(tapRingCommand(), tapBusCommand())
	return c
}

// ringFlags are the flags whose form differs from ringtap.Options.
type ringFlags struct {
	ringtap.Options
	pid    int
	epoch  string
	layer  string
	filter *ringtap.Filter
}

func tapRingCommand() *cobra.Command {
	f := ringFlags{}
	f.filter = &f.Filter
	c := &cobra.Command{
		Use:   "ring",
		Short: "Show an engine's ring: positions, counters, the newest records",
		Long: `Show the ring of an engine on this machine. The memory is found in /proc and mapped for
reading: nothing is written, nobody is woken, and neither engine nor agent can tell. It works while
the agent hangs, and needs the same user as the engine. It cannot look into a ring whose engine has
ended: that memory is the agent's alone.

  sonde tap ring                                          the ring, and its newest records
  sonde tap ring --follow --hook 'resid_*' --layer 2      captures of some hooks, live
  sonde tap ring --follow --request r-17 --stats --json   norms of one request's rows

A record with * has not been released by the agent. Figures of captures are possible up to then.
What comes faster than --rate, or is overwritten before it is read, is counted as skipped. Names of
hooks and requests come from the ring and from the engine's journal (--state-dir).`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	flags := c.Flags()
	flags.IntVar(&f.pid, "pid", 0, "process of the engine; 0 looks into all")
	flags.StringVar(&f.epoch, "epoch", "", "ring to show when there are several: 16 hex digits")
	flags.StringVar(&f.filter.Hook, "hook", "", "only captures of this hook; a pattern like resid_*")
	flags.StringVar(&f.layer, "layer", "", "only captures of this layer; - for hooks without one")
	flags.StringVar(&f.filter.Request, "request", "", "only records of this request")
	flags.BoolVar(&f.Stats, "stats", false, "decode captures and show norms")
	flags.BoolVar(&f.JSON, "json", false, "one JSON object a line")
	flags.BoolVarP(&f.Follow, "follow", "f", false, "go on until Ctrl-C")
	flags.IntVarP(&f.Last, "last", "n", 20, "newest records to show at first")
	flags.IntVar(&f.Rate, "rate", 200, "most records shown in a second")
	flags.DurationVar(&f.Interval, "interval", 200*time.Millisecond, "time between two looks")
	return c
}

func (f *ringFlags) run(c *cobra.Command) error {
	if err := f.check(); err != nil {
		return usageError{err}
	}
	f.Out = c.OutOrStdout()
	if out, ok := f.Out.(*os.File); ok && f.Follow && !f.JSON && isTerminal(out) {
		f.Screen = func() (width, height int) { return screenOf(out) }
	}
	rings, err := ringtap.Find(f.pid)
	if err != nil {
		return err
	}
	if len(rings) > 1 && f.epoch == "" {
		err := ringtap.List(f.Out, rings, f.JSON)
		for _, r := range rings {
			r.Close()
		}
		if err != nil || !f.Follow {
			return err
		}
		return usageError{fmt.Errorf("there are %d rings: choose one with --epoch or --pid", len(rings))}
	}
	r, err := ringtap.Select(rings, f.epoch)
	if err != nil {
		return err
	}
	defer r.Close()
	return ringtap.Tap(c.Context(), r, f.Options)
}

// check refuses flags that make no sense and reads the layer.
func (f *ringFlags) check() error {
	if _, err := path.Match(f.filter.Hook, ""); err != nil {
		return fmt.Errorf("--hook %q is no pattern: %w", f.filter.Hook, err)
	}
	if f.Rate < 1 || f.Last < 0 || f.Interval < 10*time.Millisecond || f.pid < 0 {
		return fmt.Errorf("--rate %d, --last %d, --interval %v, --pid %d: want at least 1, 0, 10ms and 0", f.Rate, f.Last,
			f.Interval, f.pid)
	}
	if f.layer != "" {
		n, err := layerOf(f.layer)
		if err != nil {
			return fmt.Errorf("--layer: %w", err)
		}
		f.filter.Layer = &n
	}
	return nil
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// screenOf is the size of a terminal, 0 when it does not say.
func screenOf(f *os.File) (width, height int) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(size.Col), int(size.Row)
}
