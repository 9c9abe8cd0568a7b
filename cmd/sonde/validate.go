package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"sonde/config"
)

func validateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE",
		Short: "Check a configuration file and say what it means",
		Long: `Check a configuration file without starting anything. Every mistake is printed with its
line, its key, its value and what to write instead; the exit code is then 2.

  sonde validate examples/sonde.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			conf, err := config.Load(args[0])
			if err != nil {
				return usageError{err}
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s is valid: %s\n", args[0], meaning(conf))
			return err
		},
	}
}

// meaning says in one line what a configuration would do.
func meaning(c config.Config) string {
	bus := "embedded bus in " + c.Bus.Embedded.StoreDir
	switch {
	case c.Bus.URL != "":
		bus = "bus at " + c.Bus.URL
	case c.Bus.UsesKafka():
		bus = "Kafka at " + strings.Join(c.Bus.Kafka.Brokers, ", ")
	}
	return fmt.Sprintf("%s, engines at %s, %d policy rules, dataset in %s, %d detectors", bus, c.Agent.Socket,
		len(c.Policy.Rules), c.Materializer.Lake, len(c.Detectors))
}
