package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"sonde/modelconfig"
)

// hooksOptions are the flags of sonde hooks.
type hooksOptions struct {
	hooks           []string
	tokensPerSecond int
	json            bool
}

func hooksCommand() *cobra.Command {
	var o hooksOptions
	c := &cobra.Command{
		Use:   "hooks CONFIG_JSON",
		Short: "List what can be captured of a model, from its config.json, and what it costs",
		Long: `List the hooks of a Hugging Face model: names, shapes and bytes per token, from its config.json
alone. The names are those that sonde.attach of the Python package takes.

  sonde hooks config.json
  sonde hooks config.json --hooks resid_post,blocks.*.attn.hook_z --tokens-per-second 2000
  sonde hooks config.json --json | jq '.hooks[].name'

A model_type that is not known gets a guess from its sizes, and a line that says so. "-" reads
the standard input. Exit code 2: the file is no usable configuration, or a hook does not exist.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return listHooks(c.InOrStdin(), c.OutOrStdout(), args[0], o)
		},
	}
	c.Flags().StringSliceVar(&o.hooks, "hooks", nil,
		"only these: resid_post, resid_post.3, resid_*, or TransformerLens names")
	c.Flags().IntVar(&o.tokensPerSecond, "tokens-per-second", 0, "say what so many tokens cost in a second")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return c
}

func listHooks(in io.Reader, out io.Writer, file string, o hooksOptions) error {
	if o.tokensPerSecond < 0 {
		return usageError{fmt.Errorf("--tokens-per-second is %d; want 0 or more", o.tokensPerSecond)}
	}
	b, err := readConfig(in, file)
	if err != nil {
		return usageError{err}
	}
	m, err := modelconfig.Read(b)
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", file, err)}
	}
	hooks := m.Hooks()
	if len(o.hooks) > 0 {
		if hooks, err = modelconfig.Choose(hooks, o.hooks); err != nil {
			return usageError{err}
		}
	}
	r, err := reportOf(m, hooks, o.tokensPerSecond)
	if err != nil {
		return usageError{err}
	}
	if o.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.print(out, m)
}

// readConfig reads a file up to the bound of a configuration.
func readConfig(in io.Reader, file string) ([]byte, error) {
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, modelconfig.MaxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return b, nil
}

// hooksReport is what sonde hooks says.
type hooksReport struct {
	ModelType    string             `json:"model_type"`
	Architecture string             `json:"architecture"`
	Known        bool               `json:"known"`
	Note         string             `json:"note,omitempty"`
	DType        string             `json:"dtype"`
	Layers       int                `json:"layers"`
	Hooks        []modelconfig.Hook `json:"hooks"`
	Total        modelconfig.Total  `json:"total"`
	Rate         *hooksRate         `json:"rate,omitempty"`
}

type hooksRate struct {
	TokensPerSecond int   `json:"tokens_per_second"`
	Bytes           int64 `json:"bytes_per_second"`
	SampledBytes    int64 `json:"sampled_bytes_per_second"` // more, when each token is sampled from
}

func reportOf(m *modelconfig.Model, hooks []modelconfig.Hook, tokens int) (*hooksReport, error) {
	r := &hooksReport{m.Type, m.Architecture, m.Known, m.Note(), m.DType, m.Layers, hooks, modelconfig.Sum(hooks), nil}
	if tokens == 0 {
		return r, nil
	}
	r.Rate = &hooksRate{TokensPerSecond: tokens}
	var err error
	if r.Rate.Bytes, err = modelconfig.Rate(r.Total.PerToken, tokens); err == nil {
		r.Rate.SampledBytes, err = modelconfig.Rate(r.Total.PerSampled, tokens)
	}
	return r, err
}

func (r *hooksReport) print(out io.Writer, m *modelconfig.Model) error {
	fmt.Fprintln(out, m.Heading())
	if r.Note != "" {
		fmt.Fprintln(out, "note: "+r.Note)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nHOOK\tLAYERS\tSHAPE\tTYPE\tBYTES A TOKEN\tOF ALL LAYERS")
	for _, row := range tableOf(r.Hooks) {
		fmt.Fprintln(w, row)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nEvery token: %s, %s of it in one layer\n", size(r.Total.PerToken), size(r.Total.PerLayer))
	if r.Total.PerSampled > 0 {
		fmt.Fprintf(out, "A token that is sampled from: %s more\n", size(r.Total.PerSampled))
	}
	if r.Rate != nil {
		fmt.Fprintf(out, "%d tokens a second: %s/s", r.Rate.TokensPerSecond, size(r.Rate.Bytes))
		if r.Rate.SampledBytes > 0 {
			fmt.Fprintf(out, ", and %s/s more when each is sampled from", size(r.Rate.SampledBytes))
		}
		fmt.Fprintln(out)
	}
	return nil
}

// tableOf gives a row for each hook: its layers are equal but for whether they
// have it.
func tableOf(hooks []modelconfig.Hook) []string {
	var order []string
	layers := map[string][]int{}
	first := map[string]modelconfig.Hook{}
	for _, h := range hooks {
		if _, ok := first[h.Hook]; !ok {
			order, first[h.Hook] = append(order, h.Hook), h
		}
		layers[h.Hook] = append(layers[h.Hook], h.Layer)
	}
	var out []string
	for _, name := range order {
		h := first[name]
		where := runs(layers[name])
		if h.Sampled {
			where = "sampled tokens"
		}
		out = append(out, fmt.Sprintf("%s\t%s\t%s\t%s\t%d\t%d", name, where, shapeText(h.Shape), h.DType, h.Bytes,
			h.Bytes*int64(len(layers[name]))))
	}
	return out
}

// runs says "0-35" of rising numbers, and "" of no layer.
func runs(numbers []int) string {
	var out []string
	for i := 0; i < len(numbers); {
		start := i
		for i++; i < len(numbers) && numbers[i] == numbers[i-1]+1; i++ {
		}
		text := strconv.Itoa(numbers[start])
		if i-start > 1 {
			text += "-" + strconv.Itoa(numbers[i-1])
		}
		out = append(out, text)
	}
	if slices.Equal(numbers, []int{-1}) {
		return ""
	}
	if len(out) > 4 {
		return fmt.Sprintf("%d of them", len(numbers))
	}
	return strings.Join(out, ",")
}

func shapeText(shape []int) string {
	if len(shape) == 0 {
		return "1"
	}
	var parts []string
	for _, n := range shape {
		parts = append(parts, strconv.Itoa(n))
	}
	return strings.Join(parts, "x")
}

// size shows bytes with three digits, in powers of ten as rates of networks are.
func size(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n)/1000, []string{"kB", "MB", "GB", "TB", "PB", "EB"}
	for v >= 999.5 && len(units) > 1 {
		v, units = v/1000, units[1:]
	}
	decimals := 0
	for most := 99.95; decimals < 2 && v < most; most /= 10 {
		decimals++
	}
	return strconv.FormatFloat(v, 'f', decimals, 64) + " " + units[0]
}
