package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"sonde/cmd/sonde/top"
	"sonde/config"
)

func topCommand() *cobra.Command {
	o := top.Options{Interval: time.Second}
	var urls []string
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch the running pipeline: rates, lag, the ledger, detectors, by rank",
		Long: `Watch processes of sonde run, and engines: once a second, from what they say at /metrics and
/readyz. Counts of several processes are added up. Rates and latencies are over the last 5 seconds.

  sonde top
  sonde top --url http://agent:9464 --url http://detector:9464 --url http://127.0.0.1:8000
  sonde top --once --json

LAG is records that the agent has not released, HELD their bytes in the ring, ROWS those read and not
settled, UNACKED what the bus has not acknowledged, OLDEST the age of the oldest open batch. Exit code 1
with --once: no process answers.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if len(urls) > top.MaxURLs {
				return usageError{fmt.Errorf("--url is given %d times; at most %d", len(urls), top.MaxURLs)}
			}
			for _, u := range urls {
				base, err := top.Base(u)
				if err != nil {
					return usageError{err}
				}
				o.URLs = append(o.URLs, base)
			}
			o.Out = c.OutOrStdout()
			if out, ok := o.Out.(*os.File); ok && !o.JSON && !o.Once && isTerminal(out) {
				o.Screen = func() (width, height int) { return screenOf(out) }
			}
			return top.Top(c.Context(), o)
		},
	}
	flags := c.Flags()
	flags.StringSliceVar(&urls, "url", []string{"http://" + config.Default().HTTP.Listen}, "processes to watch")
	flags.BoolVar(&o.Once, "once", false, "show one view, after a second, and end")
	flags.BoolVar(&o.JSON, "json", false, "one JSON object a view")
	return c
}
