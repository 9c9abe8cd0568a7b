package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"sonde/cmd/sonde/demo"
)

func demoCommand() *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "All of it with a real model: capture, bus, dataset, detector, in about 30 seconds",
		Long: `Start a real language model in a process of its own, send it prompts in three languages at
once, capture every hidden state, store it, score every token with a detector that stops what
is written in German, and prove at the end that the dataset holds bit for bit what the model
computed. Writes report.json, report.html and a dataset below --out.

Exit code 1: a promise was broken; the report says which.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Requests < 2 || o.Requests > 1000 || o.Target < time.Second || o.Target > time.Hour {
				return usageError{fmt.Errorf("--requests %d --target %v: want 2 to 1000 requests, and 1s to 1h", o.Requests,
					o.Target)}
			}
			r, err := demo.Run(c.Context(), o, c.OutOrStdout(), c.ErrOrStderr())
			if err != nil {
				return err
			}
			if len(r.Failures) > 0 {
				return errors.New("the demo broke a promise; see FAILED above")
			}
			return nil
		},
	}
	c.Flags().StringVar(&o.Out, "out", "data/demo", "folder for dataset and reports; an earlier demo there is replaced")
	c.Flags().StringVar(&o.Model, "model", "models/trilingual", "folder of the model")
	c.Flags().StringVar(&o.Detector, "detector", "detectors/german", `folder of the detector; "" runs none`)
	c.Flags().IntVar(&o.Requests, "requests", 72, "how many prompts to send")
	c.Flags().DurationVar(&o.Target, "target", 25*time.Second, "how long to generate")
	c.Flags().StringSliceVar(&o.Kafka, "kafka", nil,
		"brokers of a Kafka cluster, host:port, to run on instead of the embedded bus; a topic SONDE-DEMO-… stays there")
	c.Flags().BoolVar(&o.Keep, "keep", false, "keep the bus and the witness of the run")
	return c
}
