package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"sonde/cmd/sonde/replay"
	"sonde/config"
	"sonde/lakehouse"
	"sonde/recording"
	"sonde/ring2"
)

func recordCommand() *cobra.Command {
	var socket, out string
	limit := sizeFlag(64 << 30)
	c := &cobra.Command{
		Use:   "record --out DIR",
		Short: "Keep what engines put into their rings, for sonde replay",
		Long: `Record ring sessions: every control record and every captured row, with sequence numbers
and capture times. The recorder takes the place of the agent: engines connect to its socket. What
it has written and synced to the disk it releases in the ring, so that a recording misses nothing,
also when it is killed. Ctrl-C ends it at a step boundary, and the next agent goes on from there.

  sonde record --socket data/sonde.sock --out recordings/monday
  sonde replay recordings/monday --info

At --max-bytes, recording ends and keeps what it has; engines then go on without an agent.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if limit < 1<<20 {
				return usageError{fmt.Errorf("--max-bytes %s is too little for a recording; use at least 1MiB", &limit)}
			}
			log := slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil))
			if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
				return fmt.Errorf("make the folder of --socket: %w", err)
			}
			r, err := recording.NewRecorder(out, recording.Options{Recorder: "sonde " + version(), MaxBytes: int64(limit)}, log)
			if err != nil {
				return err
			}
			defer r.Close()
			l, err := ring2.Listen(socket, ring2.ListenerOptions{Name: "sonde record", Logger: log})
			if err != nil {
				return err
			}
			defer l.Close()
			log.Info("waiting for engines", "socket", socket, "out", out)
			err = r.Run(c.Context(), l)
			t := r.Totals()
			fmt.Fprintf(c.OutOrStdout(), "recorded %d records of %d sessions, %s, in %s\n", t.Records, t.Sessions,
				replay.Bytes(t.Bytes), out)
			return err
		},
	}
	c.Flags().StringVar(&socket, "socket", config.Default().Agent.Socket, "socket that engines connect to")
	c.Flags().StringVar(&out, "out", "", "folder of the recording; what it holds already stays")
	c.Flags().Var(&limit, "max-bytes", "most bytes of the folder")
	_ = c.MarkFlagRequired("out") // It fails only for a flag that does not exist.
	return c
}

func replayCommand() *cobra.Command {
	var file, speed string
	var info bool
	c := &cobra.Command{
		Use:   "replay DIR",
		Short: "Run the pipeline on a recording: same rows, same identities, same verdicts",
		Long: `Replay a recording through agent, bus, materializer and detectors, as the configuration
says. Sequence numbers, epochs and capture times are those of the recording, so that rows which the
lake has already are stored once, and verdicts are those of the run. Nothing is stopped: a detector
in mode enforce finds its verdicts too old to act on. The recording is checked as a whole first.

  sonde replay recordings/monday --info
  sonde replay recordings/monday --config sonde.yaml
  sonde replay recordings/monday --config sonde.yaml --speed real`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if speed != "max" && speed != "real" {
				return usageError{fmt.Errorf("--speed %q is unknown; use max or real", speed)}
			}
			conf := config.Default()
			if file != "" {
				var err error
				if conf, err = config.Load(file); err != nil {
					return usageError{err}
				}
			}
			r, err := recording.Open(args[0])
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w; name the folder that sonde record wrote", err)
			}
			if err != nil {
				return err
			}
			if info {
				return replay.Describe(c.OutOrStdout(), r)
			}
			return runReplay(c, r, conf, speed == "real")
		},
	}
	c.Flags().StringVar(&file, "config", "", "YAML file; without it, the defaults of examples/sonde.yaml")
	c.Flags().StringVar(&speed, "speed", "max", "max, or real for the distances of the recording")
	c.Flags().BoolVar(&info, "info", false, "only print what the recording holds")
	return c
}

// runReplay replays, and prints the agent's ledger and that of the lake.
func runReplay(c *cobra.Command, r *recording.Recording, conf config.Config, real bool) error {
	counts, err := replay.Run(c.Context(), r, conf, real, logger(conf.Log))
	if err != nil {
		return err
	}
	out := c.OutOrStdout()
	fmt.Fprintf(out, "agent: captured %d = acknowledged %d + dropped %d + aborted %d + lost %d + dead-lettered %d + "+
		"in flight %d; filtered %d\n", counts.Captured, counts.Acknowledged, counts.DroppedRows(), counts.Aborted,
		counts.Lost, counts.DeadLettered, counts.InFlight, counts.Filtered)
	if err := counts.Balance(); err != nil {
		return err
	}
	lake, err := lakehouse.Open(conf.Materializer.Lake)
	if err != nil {
		return err
	}
	account, err := lake.Account(c.Context())
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "lake %s:\n%s", conf.Materializer.Lake, account)
	return account.Balance()
}
