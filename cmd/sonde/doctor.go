package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"sonde/cmd/sonde/doctor"
	"sonde/config"
)

func doctorCommand() *cobra.Command {
	var file string
	o := doctor.Options{}
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Examine this machine and configuration, and say what to do",
		Long: `Examine this machine for a configuration: kernel, memory and files, the socket, disks, the bus and
its limits, the lake, detectors, HTTP, the clock. One line a finding: ok, warn or fail, what was found,
and what to do. Nothing is changed; disks are measured for a second with a file that has no name.

  sonde doctor
  sonde doctor --config sonde.yaml --json

Exit code 1: something fails; sonde run would not start, or would lose rows.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Config, o.Name, o.Out = config.Default(), "the default configuration", c.OutOrStdout()
			if file != "" {
				var err error
				if o.Config, err = config.Load(file); err != nil {
					return usageError{err}
				}
				o.Name = file
			}
			failed, err := doctor.Examine(c.Context(), o)
			if err == nil && failed > 0 {
				err = fmt.Errorf("examine this machine: %d findings fail", failed)
			}
			return err
		},
	}
	c.Flags().StringVar(&file, "config", "", "YAML file; without it, the defaults")
	c.Flags().BoolVar(&o.JSON, "json", false, "one JSON object a line")
	return c
}
