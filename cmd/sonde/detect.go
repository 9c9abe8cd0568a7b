package main

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sonde/config"
	"sonde/consumers/detector"
	"sonde/consumers/detector/training"
	"sonde/lakehouse"
)

func detectCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "detect",
		Short: "Make detectors of a dataset, explain them, and test them",
		Long: `Make detectors of a dataset, explain them, and test them. A detector is a folder: detector.yaml
says what it is bound to and what its thresholds rest on, weights.safetensors holds the probe,
testvectors.arrow proves that this machine scores as it should.

  sonde detect train --layer 2 --positive language=de --name german
  sonde detect show detectors/german
  sonde detect test detectors/german

To run one, name it under detectors in the configuration (see sonde config).`,
	}
	c.AddCommand(detectTrainCommand(), detectShowCommand(), detectTestCommand())
	return c
}

func detectShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show DIR",
		Short: "Say what a detector judges, how, and what its thresholds rest on",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			b, err := detector.Load(args[0])
			if err != nil {
				return err
			}
			return b.Describe(c.OutOrStdout())
		},
	}
}

func detectTestCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "test DIR",
		Short: "Run the self-test of a detector on this machine",
		Long: `Check every file of a bundle and score its test vectors with the code that scores live tokens.
Exit code 1: the bundle is damaged, or this machine scores otherwise than it should.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			b, err := detector.Load(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s %s\n%s\n", b.Manifest.Name, b.Manifest.Version, b.SelfTest())
			return err
		},
	}
}

// trainFlags are the flags of detect train.
type trainFlags struct {
	lake        string
	positive    string
	negative    string
	aggregation string
	options     training.Options
}

func detectTrainCommand() *cobra.Command {
	var f trainFlags
	c := &cobra.Command{
		Use:   "train",
		Short: "Fit a linear probe to labelled requests of a dataset and calibrate its thresholds",
		Long: `Fit a linear probe to the tokens of labelled requests, and pick thresholds at a stated
false-alarm rate per request. Requests, never tokens, are split: the figures come from requests
that the probe was not fitted to, judged by the code that judges live ones.

  sonde detect train --layer 2 --positive language=de --name german
  sonde detect train --layer 2 --positive harm=yes --negative harm=no --name harm --false-alarm 0.001 \
    --aggregation max_rolling_mean:10

Aggregations: ema[:half-life], mean[:tokens], max_rolling_mean[:tokens], topk[:windows[,tokens]], cusum[:drift].`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	o, flags := &f.options, c.Flags()
	flags.StringVar(&f.lake, "lake", config.Default().Materializer.Lake, "folder of the dataset")
	flags.StringVar(&o.Hook, "hook", "resid_post", "hook whose rows are judged")
	flags.IntVar(&o.Layer, "layer", 0, "layer of the hook; -1 for hooks without layers")
	flags.StringVar(&o.Phase, "phase", detector.PhaseDecode, "tokens to judge: decode (generated), prefill (prompt), all")
	flags.StringVar(&f.positive, "positive", "", "label, key=value, of the requests to find")
	flags.StringVar(&f.negative, "negative", "", "label, key=value, of the requests not to find (default: all others)")
	flags.StringVar(&o.Name, "name", "", "name of the detector")
	flags.StringVar(&o.Version, "version", "1", "version of the detector")
	flags.StringVar(&o.Description, "description", "", "what the detector looks for, in a sentence")
	flags.StringVar(&f.aggregation, "aggregation", "ema", "how the scores of tokens become that of a request")
	flags.Float64Var(&o.HoldOut, "holdout", 0.25, "share of the requests that is not fitted to")
	flags.Float64Var(&o.FalseAlarm, "false-alarm", 0.01, "share of the clean requests that level stop may alert on")
	flags.StringVar(&o.Out, "out", "", "folder of the new detector (default detectors/NAME)")
	for _, name := range []string{"layer", "positive", "name"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic("BUG: " + err.Error())
		}
	}
	return c
}

func (f *trainFlags) run(c *cobra.Command) error {
	var err error
	if f.options.Positive, err = training.ParseLabel(f.positive); err != nil {
		return usageError{fmt.Errorf("--positive: %w", err)}
	}
	if f.negative != "" {
		negative, err := training.ParseLabel(f.negative)
		if err != nil {
			return usageError{fmt.Errorf("--negative: %w", err)}
		}
		f.options.Negative = &negative
	}
	if f.options.Aggregation, err = detector.ParseAggregation(f.aggregation); err != nil {
		return usageError{fmt.Errorf("--aggregation: %w", err)}
	}
	if f.options.Out == "" {
		f.options.Out = filepath.Join("detectors", f.options.Name)
	}
	if f.options.Description == "" {
		f.options.Description = fmt.Sprintf("Finds requests labelled %s.", f.options.Positive)
	}
	if err := f.options.Check(); err != nil {
		return usageError{err}
	}
	lake, err := lakehouse.Open(f.lake)
	if err != nil {
		return err
	}
	f.options.Stream = incarnations(lake)
	f.options.Progress = trainingProgress(c.ErrOrStderr())
	result, err := training.Run(c.Context(), lake, f.options)
	if err != nil {
		return err
	}
	return result.Report(c.OutOrStdout())
}

// incarnations names the stream that a lake was made from: the incarnation of its
// partitions, or of each.
func incarnations(lake *lakehouse.Lake) string {
	var all []string
	for _, s := range lake.Sources() {
		if !slices.Contains(all, s.Incarnation) {
			all = append(all, s.Incarnation)
		}
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// trainingProgress prints a line when a stage begins and every few seconds.
func trainingProgress(w io.Writer) func(stage string, done int) {
	const interval = 2 * time.Second
	var last string
	var printed time.Time
	return func(stage string, done int) {
		if stage == last && time.Since(printed) < interval {
			return
		}
		last, printed = stage, time.Now()
		fmt.Fprintf(w, "%s: %d\n", stage, done)
	}
}
