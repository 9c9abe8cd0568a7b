package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"sonde/config"
	"sonde/lakehouse"
)

func lakeCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "lake",
		Short: "Look into a dataset: requests, tensors, and the account of every row",
		Long: `Look into a dataset. It may be read at every moment, also while it is being written.

  sonde lake show                                    the newest requests
  sonde lake show REQUEST                            what is stored of a request, what is missing, and why
  sonde lake tensor REQUEST resid_post 2 --out f.npy one hook of one layer, all tokens
  sonde lake verify                                  every expected row is stored once, or named
  sonde lake card                                    a dataset card, for Hugging Face datasets and others`,
	}
	dir := c.PersistentFlags().String("lake", config.Default().Materializer.Lake, "folder of the dataset")
	c.AddCommand(lakeShowCommand(dir), lakeTensorCommand(dir), lakeVerifyCommand(dir), lakeCardCommand(dir))
	return c
}

func lakeVerifyCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Account for every row: stored exactly once, or named with its reason",
		Long: `Read the ledger and the identity of every stored row, and give each row that the policy
chose exactly one class. Exit code 1: a row is stored twice, stored unasked, or unexplained.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			lake, err := lakehouse.Open(*dir)
			if err != nil {
				return err
			}
			account, err := lake.Account(c.Context())
			if err != nil {
				return err
			}
			fmt.Fprint(c.OutOrStdout(), account)
			if err := account.Balance(); err != nil {
				return fmt.Errorf("verify %s: %w", *dir, err)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), "every row is accounted for")
			return err
		},
	}
}

// tensorFlags are the flags of lake tensor.
type tensorFlags struct {
	query  lakehouse.TensorQuery
	format string
	out    string
	epoch  string
	shard  int
}

var tensorWriters = map[string]func(*lakehouse.Tensor, io.Writer) error{
	"npy":         (*lakehouse.Tensor).WriteNPY,
	"arrow":       (*lakehouse.Tensor).WriteArrow,
	"safetensors": (*lakehouse.Tensor).WriteSafetensors,
}

func lakeTensorCommand(dir *string) *cobra.Command {
	var f tensorFlags
	c := &cobra.Command{
		Use:   "tensor REQUEST HOOK LAYER",
		Short: "Read back one hook of one layer of a request, bit for bit",
		Long: `Read back one hook of one layer of a request: the accepted pass of each token, in order
of position. LAYER is "-" for hooks without a layer, like embed. A gap is an error that names
the token ranges; --allow-partial leaves them out and lists them. Zeros are never filled in.
The shards of a tensor that was split over ranks are joined; one that is missing is named.

  sonde lake tensor demo-de-01 resid_post 2 --format npy --out resid_post.npy`,
		Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			layer, err := layerOf(args[2])
			if err != nil {
				return usageError{err}
			}
			f.query.Request, f.query.Hook, f.query.Layer = args[0], args[1], layer
			return f.run(c, *dir)
		},
	}
	c.Flags().StringVar(&f.format, "format", "npy",
		"npy (bf16 and fp8 as f32, exactly), arrow or safetensors (the captured dtype)")
	c.Flags().StringVar(&f.out, "out", "", "file to write; default REQUEST.HOOK.LAYER.FORMAT, - for standard output")
	c.Flags().IntVar(&f.query.Sample, "sample", 0, "which sample of the request")
	c.Flags().IntVar(&f.query.From, "from", 0, "first position")
	c.Flags().IntVar(&f.query.To, "to", 0, "one past the last position; 0: to the end")
	c.Flags().BoolVar(&f.query.AllowPartial, "allow-partial", false, "write what there is, and list the gaps")
	c.Flags().IntVar(&f.shard, "shard", -1, "only this part of a tensor that was split over ranks")
	c.Flags().StringVar(&f.epoch, "epoch", "", "16 hex digits; needed when the request id was used more than once")
	return c
}

func (f *tensorFlags) run(c *cobra.Command, dir string) error {
	write := tensorWriters[f.format]
	if write == nil {
		return usageError{fmt.Errorf("--format %q is unknown; use npy, arrow or safetensors", f.format)}
	}
	if f.epoch != "" {
		epoch, err := epochOf(f.epoch)
		if err != nil {
			return usageError{err}
		}
		f.query.Epoch = &epoch
	}
	if c.Flags().Changed("shard") {
		f.query.Shard = &f.shard
	}
	lake, err := lakehouse.Open(dir)
	if err != nil {
		return err
	}
	t, err := lake.Tensor(c.Context(), f.query)
	var incomplete *lakehouse.IncompleteError
	if errors.As(err, &incomplete) {
		return fmt.Errorf("%w: --from and --to, or --allow-partial", err)
	}
	if err != nil {
		return err
	}
	name := f.out
	switch name {
	case "-":
		return write(t, c.OutOrStdout())
	case "":
		name = fmt.Sprintf("%s.%s.%s.%s", f.query.Request, f.query.Hook, layerText(f.query.Layer), f.format)
	}
	if err := writeWhole(name, func(w io.Writer) error { return write(t, w) }); err != nil {
		return err
	}
	for _, g := range t.Missing {
		fmt.Fprintf(c.ErrOrStderr(), "missing: positions %d to %d (%s)\n", g.From, g.To-1, g.Reason)
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "%s: %d tokens x %v %s\n", name, len(t.Positions), t.Shape, t.DType)
	return err
}

// writeWhole writes a file that appears under its name only when it is complete.
func writeWhole(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".sonde-*.part")
	if err != nil {
		return fmt.Errorf("write %s: %w; choose another file with --out", name, err)
	}
	defer os.Remove(f.Name())
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(f.Name(), name)
}
