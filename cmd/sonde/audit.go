package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"sonde/cmd/sonde/audit"
	"sonde/config"
)

func auditCommand() *cobra.Command {
	var file string
	var asJSON bool
	c := &cobra.Command{
		Use:   "audit",
		Short: "Say where each captured row is: in the tables, on the bus, under way, or gone and why",
		Long: `Say where each captured row is, epoch by epoch. It joins the tables of the lake, the messages that the
bus holds behind the lake's position, and what each stage tells of itself once a second: the engine's ring,
the agent, its spool, materializers and detectors. It reads beside everybody else and changes nothing.

  sonde audit --config sonde.yaml
  sonde audit --config sonde.yaml --json

It takes 2.5 s to hear every stage, and the time to read the tables. While rows flow, a stage may be a second
ahead of the tables; "in flight" are rows that the ledger expects and that are in the ring, the agent or its
spool. When only the tables are there, and no bus, sonde lake verify gives the account.

Exit code 1: a law does not hold, or a row is stored twice, stored unasked, unexplained or was trimmed away.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			conf := config.Default()
			if file != "" {
				if conf, err = config.Load(file); err != nil {
					return usageError{err}
				}
			}
			b, err := openExistingBus(c, conf.Bus)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, b.Close()) }()
			report, err := audit.Run(c.Context(), audit.Options{Lake: conf.Materializer.Lake, Bus: b,
				Listen: 2500 * time.Millisecond})
			if err != nil {
				return err
			}
			show := func() error { return report.Page(c.OutOrStdout(), time.Now()) }
			if asJSON {
				show = func() error { return report.JSON(c.OutOrStdout()) }
			}
			if err := show(); err != nil {
				return err
			}
			if err := report.Balance(); err != nil {
				return fmt.Errorf("audit: %w", err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "config", "", "YAML file that says where bus and lake are; without it, the defaults")
	c.Flags().BoolVar(&asJSON, "json", false, "one JSON object")
	return c
}
