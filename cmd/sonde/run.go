package main

import (
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"sonde/cmd/sonde/pipeline"
	"sonde/config"
)

func runCommand() *cobra.Command {
	var file string
	var roles []string
	c := &cobra.Command{
		Use:   "run",
		Short: "Run bus, agent, materializer and detectors, in one process or one role each",
		Long: `Run the pipeline. Without --role, everything runs in this process. With --role, this
process runs only the named roles, and finds the others through the same configuration file:

  sonde run --config sonde.yaml
  sonde run --config sonde.yaml --role bus
  sonde run --config sonde.yaml --role agent
  sonde run --config sonde.yaml --role materializer,detector

Ctrl-C stops in order: what the agent has published is stored before the process ends. A second
Ctrl-C ends it at once; nothing is lost then either, the next start goes on where this one stopped.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			conf := config.Default()
			if file != "" {
				var err error
				if conf, err = config.Load(file); err != nil {
					return usageError{err}
				}
			}
			if err := pipeline.CheckRoles(roles); err != nil {
				return usageError{err}
			}
			p, err := pipeline.Start(c.Context(), pipeline.Options{Config: conf, Roles: roles, Log: logger(conf.Log)})
			if err != nil {
				return err
			}
			return p.Run(c.Context())
		},
	}
	c.Flags().StringVar(&file, "config", "", "YAML file; without it, the defaults of examples/sonde.yaml")
	c.Flags().StringSliceVar(&roles, "role", nil, "only these roles: "+strings.Join(pipeline.Roles, ", "))
	return c
}

// logger writes to stderr as the configuration says.
func logger(c config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		panic(fmt.Sprintf("BUG: log.level %q passed the check of the configuration", c.Level))
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}
