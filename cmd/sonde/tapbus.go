package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sonde/bus"
	"sonde/cmd/sonde/bustap"
	"sonde/cmd/sonde/pipeline"
	"sonde/config"
	"sonde/schema"
)

// probeLimit bounds how long a command looks for a broker that should be there.
const probeLimit = 5 * time.Second

// busFlags are the flags whose form differs from bustap.Options.
type busFlags struct {
	bustap.Options
	config string
	layer  string
	kind   string
	from   string
	since  string
}

func tapBusCommand() *cobra.Command {
	f := busFlags{}
	c := &cobra.Command{
		Use:   "bus",
		Short: "Show the messages on the bus, or the rows of one request",
		Long: `Show what flows over the bus, live until Ctrl-C: one line a message, or one a row of the request
that --request names. It reads beside everybody else and changes nothing: nothing is published or
trimmed, and a stream that does not exist is not made.

  sonde tap bus                                            every message from now on
  sonde tap bus --hook 'resid_*' --layer 2 --stats         norms of some hooks
  sonde tap bus --request r-17 --from first --json         all rows of a request, one object each
  sonde tap bus --kind detections --from first             all verdicts
  sonde tap bus --since 10m                                what was stored in the last ten minutes, and on

Of a stream with several partitions, all are shown, each in its order; a position is then written
PARTITION:POSITION, as in the lines, and --from with one shows that partition alone.

A GAP line says which rows of a chain the stream does not have; the ledger says why. What comes faster
than --rate is counted: the next line says how many were skipped.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	flags := c.Flags()
	flags.StringVar(&f.config, "config", "", "YAML file that says where the bus is; without it, the defaults")
	flags.StringVar(&f.Filter.Hook, "hook", "", "only this hook; a pattern like resid_*")
	flags.StringVar(&f.layer, "layer", "", "only this layer; - for messages without one")
	flags.StringVar(&f.Filter.Request, "request", "", "only rows of this request, one line each")
	flags.StringVar(&f.Filter.Tenant, "tenant", "", "only this tenant")
	flags.StringVar(&f.kind, "kind", "", "only vectors, stats, requests, ledger or detections")
	flags.BoolVar(&f.Stats, "stats", false, "compute norm, mean and largest magnitude of vectors")
	flags.BoolVar(&f.JSON, "json", false, "one JSON object a line")
	flags.IntVar(&f.Rate, "rate", 200, "most lines shown in a second")
	flags.StringVar(&f.from, "from", "new", "where to start: new, first, or a position in the stream")
	flags.StringVar(&f.since, "since", "", "start at a time instead: 10m ago, or a moment like 2026-11-25T22:40:00Z")
	return c
}

func (f *busFlags) run(c *cobra.Command) error {
	if err := f.check(); err != nil {
		return usageError{err}
	}
	conf := config.Default()
	if f.config != "" {
		var err error
		if conf, err = config.Load(f.config); err != nil {
			return usageError{err}
		}
	}
	f.Out = c.OutOrStdout()
	if out, ok := f.Out.(*os.File); ok && !f.JSON && isTerminal(out) {
		f.Width = func() int { width, _ := screenOf(out); return width }
	}
	b, err := openExistingBus(c, conf.Bus)
	if err != nil {
		if c.Context().Err() != nil {
			return nil
		}
		return err
	}
	return errors.Join(bustap.Tap(c.Context(), b, f.Options), b.Close())
}

// check refuses flags that make no sense, and reads layer and position.
func (f *busFlags) check() error {
	f.Filter.Kind = schema.Kind(f.kind)
	if err := f.Filter.Check(); err != nil {
		return err
	}
	if f.Rate < 1 {
		return fmt.Errorf("--rate %d: want at least 1", f.Rate)
	}
	if f.layer != "" {
		n, err := layerOf(f.layer)
		if err != nil {
			return fmt.Errorf("--layer: %w", err)
		}
		f.Filter.Layer = &n
	}
	switch f.from {
	case "new":
		f.From = bus.FromNew
	case "first":
		f.From = 0
	default:
		if err := f.position(); err != nil {
			return err
		}
	}
	return f.sinceWhen(time.Now())
}

// position reads --from as a position of the stream, or of one of its partitions.
func (f *busFlags) position() error {
	text := f.from
	if partition, rest, several := strings.Cut(text, ":"); several {
		n, err := strconv.ParseUint(partition, 10, 16)
		if err != nil {
			return fmt.Errorf("--from %q: the partition is no number; write one like 2:17", f.from)
		}
		f.Only, text = int(n), rest
	}
	n, err := strconv.ParseUint(text, 10, 63)
	if err != nil || n == 0 {
		return fmt.Errorf("--from %q: write new, first, or a position from 1", f.from)
	}
	f.From = n
	return nil
}

// sinceWhen reads --since.
func (f *busFlags) sinceWhen(now time.Time) error {
	if f.since == "" {
		return nil
	}
	if f.from != "new" {
		return fmt.Errorf("--from %s and --since %s: give one of them", f.from, f.since)
	}
	f.From = 0
	if d, err := time.ParseDuration(f.since); err == nil && d > 0 {
		f.Since = now.Add(-d)
		return nil
	}
	var err error
	if f.Since, err = time.Parse(time.RFC3339, f.since); err != nil {
		return fmt.Errorf("--since %q: write how long ago, like 10m, or a moment like 2026-11-25T22:40:00Z", f.since)
	}
	return nil
}

// openExistingBus connects to a broker that runs and to a stream that is there.
func openExistingBus(c *cobra.Command, conf config.Bus) (bus.Bus, error) {
	if conf.UsesKafka() {
		return openExistingKafka(c, conf)
	}
	o, err := pipeline.NATSOptions(conf)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.Context(), probeLimit)
	defer cancel()
	broker, err := bus.Probe(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("reach the bus at %s: %w; start sonde run, or name its configuration with --config",
			o.URL, err)
	}
	if broker.Stream == nil {
		return nil, fmt.Errorf("find stream %s at %s: it does not exist; start sonde run, which makes it", conf.Stream,
			o.URL)
	}
	if len(broker.Losses) > 0 {
		return nil, fmt.Errorf("read stream %s at %s: %s", conf.Stream, o.URL, strings.Join(broker.Losses, "; "))
	}
	o.MaxBytes, o.MustExist, o.Replicas = int64(broker.Stream.MaxBytes), true, 0
	o.Logger = slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	return bus.OpenNATS(ctx, o)
}

// openExistingKafka connects to a topic that is there.
func openExistingKafka(c *cobra.Command, conf config.Bus) (bus.Bus, error) {
	o, err := pipeline.KafkaOptions(conf)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.Context(), probeLimit)
	defer cancel()
	broker, err := bus.ProbeKafka(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("reach Kafka at %s: %w; name the cluster's configuration with --config",
			strings.Join(o.Brokers, ", "), err)
	}
	if broker.Stream == nil {
		return nil, fmt.Errorf("find topic %s at %s: it does not exist; start sonde run, which makes it", conf.Stream,
			strings.Join(o.Brokers, ", "))
	}
	o.MustExist = true
	o.Logger = slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	return bus.OpenKafka(ctx, o)
}
