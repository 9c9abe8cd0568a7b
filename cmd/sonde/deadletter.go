package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sonde/config"
	"sonde/deadletter"
)

// deadFlags say where the letters lie.
type deadFlags struct {
	config, dir string
	conf        config.Config
}

func deadletterCommand() *cobra.Command {
	f := &deadFlags{}
	c := &cobra.Command{
		Use:   "deadletter",
		Short: "Look at messages that could never be taken, and publish them again",
		Long: `Look at the dead letters of agent and materializer: messages that the bus refused for good, as too
large, and messages that could not be read. Nothing else ever stops the stream; their rows count as
dead_lettered in the ledger, under the name of the file.

  sonde deadletter list                 what there is, and why
  sonde deadletter show 1f0c            one of them: its reason, its header, its rows or its bytes
  sonde deadletter replay 1f0c          after the cause was mended: publish it again
  sonde deadletter list --follow        what becomes a dead letter from now on, told over the bus

A letter is named by its file, or by the first digits of that. The folders are those of --config,
agent.dead_letter.dir and materializer.dead_letter_dir, or the one of --dir.`,
	}
	c.PersistentFlags().StringVar(&f.config, "config", "", "YAML file that says where folders and bus are; "+
		"without it, the defaults")
	c.PersistentFlags().StringVar(&f.dir, "dir", "", "a folder of dead letters instead of those of the configuration")
	c.AddCommand(deadletterListCommand(f), deadletterShowCommand(f), deadletterReplayCommand(f))
	return c
}

// load reads the configuration.
func (f *deadFlags) load() (err error) {
	f.conf = config.Default()
	if f.config != "" {
		if f.conf, err = config.Load(f.config); err != nil {
			return usageError{err}
		}
	}
	return nil
}

// entries lists the letters of all folders, oldest first.
func (f *deadFlags) entries() ([]deadletter.Entry, error) {
	dirs := []string{f.conf.Agent.DeadLetter.Dir, f.conf.Materializer.DeadLetterDir}
	if f.dir != "" {
		dirs = []string{f.dir}
	}
	var out []deadletter.Entry
	for i, dir := range dirs {
		if i > 0 && filepath.Clean(dir) == filepath.Clean(dirs[0]) {
			continue
		}
		list, err := deadletter.List(dir)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	slices.SortStableFunc(out, func(a, b deadletter.Entry) int { return a.When.Compare(b.When) })
	return out, nil
}

// find is the letter with a name, or with a name that starts so.
func (f *deadFlags) find(name string) (deadletter.Entry, error) {
	all, err := f.entries()
	if err != nil {
		return deadletter.Entry{}, err
	}
	var found []deadletter.Entry
	for _, e := range all {
		if e.Path == name || strings.HasPrefix(filepath.Base(e.Path), filepath.Base(name)) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return deadletter.Entry{}, fmt.Errorf("find the dead letter %q: there is none; see sonde deadletter list", name)
	}
	return deadletter.Entry{}, usageError{fmt.Errorf("find the dead letter %q: %d names start so; write more of it", name,
		len(found))}
}

func deadletterListCommand(f *deadFlags) *cobra.Command {
	var asJSON, follow bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the dead letters, oldest first",
		Long: `List the dead letters, oldest first: when they were kept, by whom, how large the message is, its
subject and the reason. Exit code 1: a file cannot be read, as one that is torn.

With --follow, nothing is read from disk: whatever becomes a dead letter anywhere on this bus from
now on is shown until Ctrl-C. That also needs no access to the disk of agent and materializer.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.load(); err != nil {
				return err
			}
			if follow {
				return f.follow(c, asJSON)
			}
			all, err := f.entries()
			if err != nil {
				return err
			}
			return listLetters(c.OutOrStdout(), all, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "one JSON object a line")
	c.Flags().BoolVar(&follow, "follow", false, "show what becomes a dead letter from now on, told over the bus")
	return c
}

// listed is a letter as --json shows it.
type listed struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes"` // of the file
	*deadletter.Letter
	Error string `json:"error,omitempty"` // why the file cannot be read
}

func listLetters(out io.Writer, all []deadletter.Entry, asJSON bool) error {
	var bad []error
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	enc := json.NewEncoder(out)
	if !asJSON && len(all) > 0 {
		fmt.Fprintln(w, "NAME\tWHEN\tFROM\tBYTES\tSUBJECT\tREASON")
	}
	for _, e := range all {
		name := filepath.Base(e.Path)
		if e.Err != nil {
			bad = append(bad, e.Err)
		}
		switch {
		case asJSON && e.Err != nil:
			if err := enc.Encode(listed{File: e.Path, Bytes: e.Bytes, Error: e.Err.Error()}); err != nil {
				return err
			}
		case asJSON:
			if err := enc.Encode(listed{File: e.Path, Bytes: e.Bytes, Letter: &e.Letter}); err != nil {
				return err
			}
		case e.Err != nil:
			fmt.Fprintf(w, "%s\t-\t-\t%d\t-\tcannot be read\n", name, e.Bytes)
		default:
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", name, e.When.UTC().Format(time.RFC3339), e.From, e.Bytes,
				clean(e.Subject, 60), clean(e.Reason, 80))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if !asJSON && len(all) == 0 {
		fmt.Fprintln(out, "there are no dead letters")
	}
	return errors.Join(bad...)
}

// clean makes one short line of text that comes from outside.
func clean(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '.'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// follow shows what the bus tells of dead letters.
func (f *deadFlags) follow(c *cobra.Command, asJSON bool) error {
	b, err := openExistingBus(c, f.conf.Bus)
	if err != nil {
		if c.Context().Err() != nil {
			return nil
		}
		return err
	}
	ctx, cancel := context.WithCancelCause(c.Context())
	defer cancel(nil)
	enc := json.NewEncoder(c.OutOrStdout())
	stop, err := b.Listen(deadletter.Subject, func(data []byte) {
		n, err := deadletter.ReadNote(data)
		switch {
		case err != nil:
			fmt.Fprintln(c.ErrOrStderr(), err)
			return
		case asJSON:
			err = enc.Encode(n)
		default:
			name := n.Name
			if name == "" {
				name = "(no room)"
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s  %s  %s on %s  %d bytes  %s  %s\n", n.When.UTC().Format(time.RFC3339),
				clean(name, 40), clean(n.From, 20), clean(n.Host, 60), n.Bytes, clean(n.Subject, 60), clean(n.Reason, 200))
		}
		if err != nil { // nobody reads any more
			cancel(err)
		}
	})
	if err != nil {
		return errors.Join(err, b.Close())
	}
	fmt.Fprintln(c.ErrOrStderr(), "waiting for dead letters; Ctrl-C ends")
	<-ctx.Done()
	stop()
	err = context.Cause(ctx)
	if c.Context().Err() != nil {
		err = nil
	}
	return errors.Join(err, b.Close())
}
