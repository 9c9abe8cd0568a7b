package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sonde/lakehouse"
	"sonde/lakehouse/account"
	"sonde/schema"
)

// showNewest is how many requests lake show lists by default.
const showNewest = 20

func lakeShowCommand(dir *string) *cobra.Command {
	var last int
	c := &cobra.Command{
		Use:   "show [REQUEST]",
		Short: "List requests, or show one: what is stored, what is missing, and why",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			lake, err := lakehouse.Open(*dir)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return showRequests(c.Context(), c.OutOrStdout(), lake, last)
			}
			return showRequest(c.Context(), c.OutOrStdout(), lake, args[0])
		},
	}
	c.Flags().IntVar(&last, "last", showNewest, "how many of the newest requests to list")
	return c
}

// showRequests lists the newest requests, one line per sample.
func showRequests(ctx context.Context, out io.Writer, lake *lakehouse.Lake, last int) error {
	var all []lakehouse.Request
	err := lake.Requests(ctx, lakehouse.Query{}, func(r *lakehouse.Request) error {
		all = append(all, *r)
		return nil
	})
	if err != nil {
		return err
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].OpenNS < all[j].OpenNS })
	shown := all[max(0, len(all)-max(last, 0)):]
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "request\tsample\ttenant\tprompt\tgenerated\tended\topened")
	for i := range shown {
		r := &shown[i]
		fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%d\t%s\t%s\n", r.Request, r.Sample, r.Tenant, r.PromptTokens, r.GeneratedTokens,
			ending(r), wallTime(r.OpenNS))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%d of %d requests; commit %d of the dataset\n", len(shown), len(all), lake.Version())
	return err
}

func ending(r *lakehouse.Request) string {
	if !r.Ended {
		return "still open"
	}
	return r.Reason
}

func wallTime(ns int64) string {
	if ns == 0 {
		return "-"
	}
	return time.Unix(0, ns).Format(time.DateTime)
}

// showRequest shows everything that is known about one request.
func showRequest(ctx context.Context, out io.Writer, lake *lakehouse.Lake, id string) error {
	found := 0
	query := lakehouse.Query{Request: id}
	err := lake.Requests(ctx, query, func(r *lakehouse.Request) error {
		found++
		printRequest(out, r)
		return nil
	})
	if err != nil {
		return err
	}
	if found == 0 {
		return fmt.Errorf("show request %q: the dataset has no such request; sonde lake show lists the newest", id)
	}
	b := account.NewBuilder()
	hooks, err := storedOf(ctx, lake, query, b)
	if err != nil {
		return err
	}
	if err := factsOf(ctx, lake, id, b); err != nil {
		return err
	}
	a := b.Finish()
	printHooks(out, hooks, a)
	fmt.Fprintf(out, "\nof %d rows that the policy chose: %d stored", a.Expected, a.Stored)
	for _, reason := range sortedReasons(a.Dropped) {
		fmt.Fprintf(out, ", %d dropped (%s)", a.Dropped[reason], reason)
	}
	fmt.Fprintf(out, ", %d aborted, %d lost, %d dead-lettered, %d in flight; %d filtered beside them\n", a.Aborted, a.Lost,
		a.DeadLettered, a.InFlight, a.Filtered)
	if err := printDetections(ctx, out, lake, query); err != nil {
		return err
	}
	return a.Balance()
}

func printRequest(out io.Writer, r *lakehouse.Request) {
	fmt.Fprintf(out, "request %s, sample %d (engine %s rank %d, epoch %016x, number %d, engine id %s)\n", r.Request,
		r.Sample, r.Engine, r.Rank, r.Epoch, r.Number, r.EngineID)
	fmt.Fprintf(out, "  model      %s %s, weights %s, %s\n", r.Model, r.Revision, r.WeightsDigest, orNone(r.Quantisation))
	fmt.Fprintf(out, "  tenant     %s, adapter %s, opt-in %v, labels %s\n", orNone(r.Tenant), orNone(r.Adapter), r.OptIn,
		labelText(r.Labels))
	fmt.Fprintf(out, "  tokens     %d prompt (%d from the prefix cache), %d generated of at most %d, %d passes\n",
		r.PromptTokens, r.CachedTokens, r.GeneratedTokens, r.MaxTokens, r.Passes)
	fmt.Fprintf(out, "  opened     %s, ended %s (%s)\n\n", wallTime(r.OpenNS), wallTime(r.EndNS), ending(r))
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func labelText(labels map[string]string) string {
	var parts []string
	for k, v := range labels {
		parts = append(parts, k+"="+v)
	}
	sort.Strings(parts)
	return orNone(strings.Join(parts, " "))
}

// hookRows is what is stored of one hook of one layer.
type hookRows struct {
	hook, form  string
	layer, rows int
	from, to    int32
}

// storedOf collects what is stored of a request, and feeds its rows to b.
func storedOf(ctx context.Context, lake *lakehouse.Lake, q lakehouse.Query, b *account.Builder) ([]*hookRows, error) {
	type key struct {
		hook, form string
		layer      int
	}
	found := map[key]*hookRows{}
	take := func(hook, form string, layer int, position int32) {
		k := key{hook, form, layer}
		h := found[k]
		if h == nil {
			h = &hookRows{hook: hook, form: form, layer: layer, from: position, to: position}
			found[k] = h
		}
		h.rows++
		h.from, h.to = min(h.from, position), max(h.to, position)
	}
	err := lake.Vectors(ctx, q, func(v *lakehouse.Vector) error {
		take(v.Hook, fmt.Sprintf("%s %v%s", v.DType, v.Shape, shardText(v.Shard, v.ShardCount)), v.Layer, v.Position)
		b.Stored(account.Row{Epoch: v.Epoch, Hook: v.Hook, Layer: v.Layer, Shard: v.Shard, Seq: v.Seq, Row: v.Row})
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = lake.VectorStats(ctx, q, func(v *lakehouse.VectorStats) error {
		take(v.Hook, "stats"+shardText(v.Shard, v.ShardCount), v.Layer, v.Position)
		b.Stored(account.Row{Epoch: v.Epoch, Hook: v.Hook, Layer: v.Layer, Shard: v.Shard, Seq: v.Seq, Row: v.Row})
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = lake.Tokens(ctx, q, func(v *lakehouse.Token) error {
		take(v.Hook, "token id", v.Layer, v.Position)
		b.Stored(account.Row{Epoch: v.Epoch, Hook: v.Hook, Layer: v.Layer, Shard: v.Shard, Seq: v.Seq, Row: v.Row})
		return nil
	})
	out := make([]*hookRows, 0, len(found))
	for _, h := range found {
		out = append(out, h)
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		return cmp.Or(cmp.Compare(a.hook, b.hook), cmp.Compare(a.layer, b.layer), cmp.Compare(a.form, b.form)) < 0
	})
	return out, err
}

// shardText names a part of a tensor that was split over ranks.
func shardText(shard, count int) string {
	if count <= 1 {
		return ""
	}
	return fmt.Sprintf(", shard %d of %d", shard, count)
}

// factsOf feeds the facts about a request, and those about whole captures, which
// name no request.
func factsOf(ctx context.Context, lake *lakehouse.Lake, id string, b *account.Builder) error {
	return lake.Ledger(ctx, lakehouse.Query{}, func(f *lakehouse.Fact) error {
		switch f.Fact {
		case schema.FactExpected, schema.FactMissing, schema.FactAmend, schema.FactDropped:
			if f.Request != id {
				return nil
			}
		}
		return b.Fact(*f)
	})
}

func printHooks(out io.Writer, hooks []*hookRows, a *account.Account) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  hook\tlayer\trows\tpositions\tstored as")
	for _, h := range hooks {
		fmt.Fprintf(w, "  %s\t%s\t%d\t%d to %d\t%s\n", h.hook, layerText(h.layer), h.rows, h.from, h.to, h.form)
	}
	w.Flush()
	for _, h := range a.ByHook {
		if missing := h.Expected - h.Stored; missing > 0 {
			fmt.Fprintf(out, "  %s: %d of %d rows are not stored\n", orNone(h.Hook), missing, h.Expected)
		}
	}
}

func printDetections(ctx context.Context, out io.Writer, lake *lakehouse.Lake, q lakehouse.Query) error {
	return lake.Detections(ctx, q, func(d *schema.DetectionRow) error {
		_, err := fmt.Fprintf(out, "detector %s %s: %s at position %d, score %.3f over %.3f, coverage %.0f %%, %s\n",
			d.Detector, d.Version, d.Level, d.Position, d.Score, d.Threshold, 100*d.Coverage,
			strings.TrimSpace("action "+d.Action+" "+d.Outcome))
		return err
	})
}

func sortedReasons(dropped map[string]uint64) []string {
	var out []string
	for reason := range dropped {
		out = append(out, reason)
	}
	sort.Strings(out)
	return out
}

// layerOf reads a layer of the command line; "-" is none.
func layerOf(text string) (int, error) {
	if text == "-" {
		return -1, nil
	}
	layer, err := strconv.Atoi(text)
	if err != nil || layer < -1 {
		return 0, fmt.Errorf("layer %q is no layer; write a number from 0, or - for hooks without a layer", text)
	}
	return layer, nil
}

func layerText(layer int) string {
	if layer < 0 {
		return "-"
	}
	return strconv.Itoa(layer)
}

// epochOf reads the 16 hex digits of an epoch.
func epochOf(text string) (uint64, error) {
	epoch, err := strconv.ParseUint(text, 16, 64)
	if err != nil || len(text) != 16 {
		return 0, fmt.Errorf("epoch %q is not 16 hex digits; sonde lake show REQUEST names it", text)
	}
	return epoch, nil
}
