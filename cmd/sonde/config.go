package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"sonde"
	"sonde/config"
)

func configCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Explain the configuration file: an example, each key, a schema for editors",
		Long: `Explain the configuration file.

  sonde config example > sonde.yaml       every key with its default
  sonde config explain agent.linger_ms    one key, or every key below a block
  sonde config schema > sonde.schema.json a JSON Schema for editors`,
	}
	c.AddCommand(&cobra.Command{
		Use:   "example",
		Short: "Print a configuration that writes out the defaults",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(c.OutOrStdout(), sonde.ConfigExample)
			return err
		},
	}, &cobra.Command{
		Use:   "explain [KEY]",
		Short: "Say what a key does, what may be written, and its default",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			key := ""
			if len(args) == 1 {
				key = args[0]
			}
			found, err := config.Explain(sonde.ConfigPage, key)
			if err != nil {
				return usageError{err}
			}
			for _, e := range found {
				fmt.Fprintf(c.OutOrStdout(), "%s (%s; default %s)\n    %s\n", e.Key, e.Type, e.Default, e.Text)
			}
			return nil
		},
	}, &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration file",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			schema, err := config.JSONSchema(sonde.ConfigPage)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", schema)
			return err
		},
	})
	return c
}
