// Command sonde streams the inside of a running language model onto a message
// bus, and turns that stream into datasets and verdicts.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes of every command.
const (
	exitOK          = 0
	exitFailed      = 1   // the environment is unusable, or a check failed
	exitUsage       = 2   // the command line or the configuration is wrong
	exitInterrupted = 130 // Ctrl-C or SIGTERM came before the command was done
)

// usageError is a mistake of the caller: it exits with exitUsage.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes one command line and returns its exit code. The first SIGINT or
// SIGTERM cancels the command's context; the second ends the process at once.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)

	started := false
	root := rootCommand()
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(stderr, "sonde: interrupted before it was done")
		return exitInterrupted
	}
	fmt.Fprintf(stderr, "sonde: %v\n", err)
	var usage usageError
	if errors.As(err, &usage) || !started || strings.HasPrefix(err.Error(), "required flag") {
		return exitUsage
	}
	return exitFailed
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "sonde",
		Short: "Stream the inside of a running language model onto a bus, into datasets and to detectors",
		Long: `Sonde streams the inside of a running language model onto a message bus, and turns
that stream into datasets and real-time verdicts.

  engine ──ring──▶ agent ──▶ bus ──▶ materializer ──▶ dataset
                                └──▶ detector ──▶ alerts, abort

Start here:
  sonde demo                      all of it, with a real model, in about 30 seconds
  sonde run                       agent, bus, materializer and detectors in one process
  sonde engine --model arithmetic an engine that connects to it
  sonde lake --help               look into a dataset
  sonde doctor                    examine this machine and configuration
  sonde top                       watch a running pipeline

Exit codes: 0 ok, 1 the environment is unusable or a check failed, 2 wrong usage or configuration,
130 interrupted before it was done. A second Ctrl-C ends a command at once.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(commands()...)
	prepare(root)
	return root
}

// prepare has a command, and all below it, say what to write when its arguments are wrong.
func prepare(c *cobra.Command) {
	check := c.Args
	switch {
	case c.HasSubCommands():
		c.RunE, c.Args, c.SuggestionsMinimumDistance = group, cobra.ArbitraryArgs, 2
	case check != nil:
		c.Args = func(c *cobra.Command, args []string) error {
			if check(c, args) == nil {
				return nil
			}
			usage := strings.TrimSuffix(c.UseLine(), " [flags]")
			return usageError{fmt.Errorf("got %d argument(s), %q; write %s; see %s --help", len(args), args, usage,
				c.CommandPath())}
		}
	}
	for _, sub := range c.Commands() {
		prepare(sub)
	}
}

// group is what a command does that only groups others: without one, it explains
// them; a word that is none of them is a mistake and must not look like success.
func group(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	hint := ""
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, ", or ") + "? "
	}
	return usageError{fmt.Errorf("unknown command %q for %q; %ssee %s --help", args[0], c.CommandPath(), hint,
		c.CommandPath())}
}

// commands lists every command; each is written in the file of its name.
func commands() []*cobra.Command {
	return []*cobra.Command{
		demoCommand(),
		runCommand(),
		engineCommand(),
		lakeCommand(),
		detectCommand(),
		recordCommand(),
		replayCommand(),
		deadletterCommand(),
		tapCommand(),
		topCommand(),
		hooksCommand(),
		doctorCommand(),
		auditCommand(),
		validateCommand(),
		configCommand(),
		versionCommand(),
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), "sonde "+version())
			return err
		},
	}
}

// version is the module version, or the revision that the binary was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	out := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && !strings.Contains(out, s.Value[:min(12, len(s.Value))]) {
			out += " " + s.Value[:min(12, len(s.Value))]
		}
	}
	return out + " " + info.GoVersion
}
