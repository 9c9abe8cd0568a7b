package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sonde/bus"
	"sonde/cmd/sonde/bustap"
	"sonde/schema"
)

// busConfig is a configuration file of a server that runs in this process.
func busConfig(t *testing.T) (*bus.EmbeddedServer, string) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	e, err := bus.StartEmbedded(bus.EmbeddedOptions{StoreDir: t.TempDir(), Listen: "127.0.0.1:0", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	u, err := url.Parse(e.URL())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "sonde.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "bus: {url: \"nats://%s\"}\n", u.Host), 0o644); err != nil {
		t.Fatal(err)
	}
	return e, file
}

func TestTappingTheBusMakesNoStream(t *testing.T) {
	e, file := busConfig(t)
	for range 2 {
		var out, errOut bytes.Buffer
		if code := run([]string{"tap", "bus", "--config", file}, &out, &errOut); code != exitFailed ||
			!strings.Contains(errOut.String(), "it does not exist") {
			t.Fatalf("exit code %d: %s", code, errOut.String())
		}
	}
	b, err := bus.Probe(t.Context(), bus.NATSOptions{URL: e.URL(), Stream: "SONDE"})
	if err != nil || b.Stream != nil {
		t.Fatalf("the tap made a stream: %+v, %v", b, err)
	}
}

func TestWhereATapStarts(t *testing.T) {
	for from, want := range map[string]busFlags{
		"7":   {Options: bustap.Options{From: 7}},
		"2:7": {Options: bustap.Options{From: 7, Only: 2}},
		"0:1": {Options: bustap.Options{From: 1}},
	} {
		f := busFlags{from: from}
		if err := f.position(); err != nil || f.From != want.From || f.Only != want.Only {
			t.Errorf("%s: %+v, %v", from, f, err)
		}
	}
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	for since, want := range map[string]time.Time{"10m": now.Add(-10 * time.Minute),
		"2026-11-25T10:00:00+01:00": now.Add(-3 * time.Hour)} {
		f := busFlags{since: since, from: "new"}
		if err := f.sinceWhen(now); err != nil || !f.Since.Equal(want) || f.From != 0 {
			t.Errorf("%s: %s, %v", since, f.Since, err)
		}
	}
	for _, args := range [][]string{{"--from", "2:"}, {"--from", "x:1"}, {"--from", "0"}, {"--from", "-1:4"},
		{"--since", "-1m"}, {"--since", "yesterday"}, {"--since", "1m", "--from", "first"}} {
		var out, errOut bytes.Buffer
		if code := run(append([]string{"tap", "bus"}, args...), &out, &errOut); code != exitUsage {
			t.Errorf("%v: exit code %d: %s", args, code, errOut.String())
		}
	}
}

// firstLine ends a command with its first line.
type firstLine struct {
	bytes.Buffer
	end context.CancelFunc
}

func (w *firstLine) Write(p []byte) (int, error) {
	defer w.end()
	return w.Buffer.Write(p)
}

func TestTheTapReadsARealBrokerAndEndsClean(t *testing.T) {
	e, file := busConfig(t)
	b, err := bus.OpenNATS(t.Context(), bus.NATSOptions{Embedded: e, MaxBytes: 64 << 20,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	h := schema.Header{Kind: schema.KindRequests, Tenant: "a.b", Engine: "e", Hook: schema.Hookless, Layer: -1,
		ShardCount: 1}
	h.AddRow(1, 0)
	data, err := schema.EncodeRequests(h, []schema.RequestRow{{Seq: 1, Event: schema.EventOpen, Request: "r-1"}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	if err := b.Publish(t.Context(), bus.Message{Subject: schema.Subject(h), Data: data},
		func(_ uint64, err error) { done <- err }); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &firstLine{end: cancel}
	var errOut bytes.Buffer
	root := rootCommand()
	root.SetArgs(strings.Fields("tap bus --from first --tenant a.b --request r-1 --json --config " + file))
	root.SetOut(out)
	root.SetErr(&errOut)
	if err := root.ExecuteContext(ctx); err != nil {
		t.Fatalf("the end that the user asked for is an error: %v", err)
	}
	var row struct{ Type, Request, Text string }
	if err := json.Unmarshal(out.Bytes(), &row); err != nil || row.Type != "row" || row.Request != "r-1" {
		t.Errorf("got %q, %v", out.String(), err)
	}
	if errOut.Len() > 0 {
		t.Errorf("the tap complains: %s", errOut.String())
	}
}

func TestWrongTapFlagsAreUsageErrors(t *testing.T) {
	for _, args := range []string{"--from yesterday", "--from 0", "--rate 0", "--layer x", "--kind tensors",
		"--hook ["} {
		var out, errOut bytes.Buffer
		if code := run(append([]string{"tap", "bus"}, strings.Fields(args)...), &out, &errOut); code != exitUsage {
			t.Errorf("tap bus %s: exit code %d: %s", args, code, errOut.String())
		}
	}
}
