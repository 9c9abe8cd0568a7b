package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sonde/deadletter"
	"sonde/schema"
)

// Bounds of what show prints of one letter.
const (
	shownRows  = 8
	shownBytes = 256
)

func deadletterShowCommand(f *deadFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show one dead letter: its reason, its header, its rows or its bytes",
		Long: `Show one dead letter: why it is one, where it came from, and what can be read of the message: its
header, and the first rows, or, where it cannot be decoded, why not, and its first bytes.

NAME is a name of sonde deadletter list, or the first digits of one.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := f.load(); err != nil {
				return err
			}
			e, err := f.find(args[0])
			if err == nil {
				e.Letter, err = deadletter.Read(e.Path)
			}
			if err != nil {
				return err
			}
			return showLetter(c.OutOrStdout(), &e)
		},
	}
}

func showLetter(out io.Writer, e *deadletter.Entry) error {
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", key, fmt.Sprintf(format, args...))
	}
	line("file", "%s", e.Path)
	line("kept", "%s by the %s", e.When.UTC().Format(time.RFC3339), e.From)
	line("reason", "%s", clean(e.Reason, 4096))
	line("subject", "%s", clean(e.Subject, 1024))
	if e.ID != "" {
		line("id", "%s", clean(e.ID, 1024))
	}
	if e.Position > 0 {
		line("stood at", "position %d of partition %d, stored %s, incarnation %s", e.Position, e.Partition,
			e.Stored.UTC().Format(time.RFC3339), clean(e.Incarnation, 100))
	}
	line("message", "%d bytes", len(e.Data))
	batch, err := schema.Decode(e.Data)
	if err != nil {
		line("decoded", "no: %s", clean(err.Error(), 1024))
		if h, err := schema.DecodeHeader(e.Data); err == nil {
			showHeader(line, &h)
		}
		fmt.Fprintf(&b, "\n%s", hex.Dump(e.Data[:min(len(e.Data), shownBytes)]))
		if n := len(e.Data) - shownBytes; n > 0 {
			fmt.Fprintf(&b, "and %d more bytes\n", n)
		}
		_, err := io.WriteString(out, b.String())
		return err
	}
	line("decoded", "yes: sonde deadletter replay can publish it again")
	showHeader(line, &batch.Header)
	fmt.Fprintln(&b)
	for i := range min(batch.Len(), shownRows) {
		fmt.Fprintln(&b, "  "+rowText(batch, i))
	}
	if n := batch.Len() - shownRows; n > 0 {
		fmt.Fprintf(&b, "  and %d more rows\n", n)
	}
	_, err = io.WriteString(out, b.String())
	return err
}

func showHeader(line func(key, format string, args ...any), h *schema.Header) {
	rows := uint64(0)
	for _, s := range h.Spans {
		rows += uint64(s.Rows)
	}
	line("header", "%s of tenant %q, engine %q rank %d, epoch %016x", h.Kind, clean(h.Tenant, 100), clean(h.Engine, 100),
		h.Rank, h.Epoch)
	line("", "hook %s layer %d shard %d, %d rows from %v to %v", clean(h.Hook, 100), h.Layer, h.Shard, rows, h.First(),
		h.Last())
}

// rowText says what a row is about.
func rowText(b *schema.Batch, i int) string {
	switch b.Header.Kind {
	case schema.KindVectors:
		v := b.Vector(i)
		return fmt.Sprintf("%d:%d request %s sample %d position %d pass %d, %d bytes", v.Seq, v.Row, clean(v.Request, 100),
			v.Sample, v.Position, v.Pass, len(v.Vec))
	case schema.KindStats:
		v := b.Stats(i)
		return fmt.Sprintf("%d:%d request %s sample %d position %d pass %d, l2 %g", v.Seq, v.Row, clean(v.Request, 100),
			v.Sample, v.Position, v.Pass, v.L2)
	case schema.KindRequests:
		v := b.RequestAt(i)
		return fmt.Sprintf("%d:%d %s request %s", v.Seq, v.Row, clean(v.Event, 20), clean(v.Request, 100))
	case schema.KindLedger:
		v := b.Ledger(i)
		return fmt.Sprintf("%d:%d %s request %s positions from %d, %d rows %s", v.Seq, v.Row, clean(v.Fact, 20),
			clean(v.Request, 100), v.Position, v.Rows, clean(v.Reason, 100))
	}
	v := b.Detection(i)
	return fmt.Sprintf("%d:%d %s of %s, request %s position %d", v.Seq, v.Row, clean(v.Level, 20), clean(v.Detector, 100),
		clean(v.Request, 100), v.Position)
}
