// Package doctor looks at a machine and a configuration and says what would keep
// Sonde from running well, and what to do about it. It changes nothing but for a
// short measurement with a file that has no name.
package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"sonde/bus"
	"sonde/cmd/sonde/pipeline"
	"sonde/config"
)

// Levels of a finding.
const (
	OK   = "ok"
	Warn = "warn" // it runs, with a loss that Found names
	Fail = "fail" // sonde run does not start, or loses rows
)

// Finding is one thing that was looked at.
type Finding struct {
	Level string `json:"level"`
	Check string `json:"check"`
	Found string `json:"found"`
	Do    string `json:"do,omitempty"` // what to do; empty: nothing
}

// Options of an examination.
type Options struct {
	Config config.Config
	Name   string // of the configuration, for the first line
	JSON   bool   // one object a line
	Out    io.Writer
}

// Examine looks at everything, writes a line for each finding as it comes, and
// returns how many failed. The error is that of Out, or of ctx.
func Examine(ctx context.Context, o Options) (failed int, err error) {
	c := &o.Config
	clock := startClock()
	var broker *bus.Broker
	checks := []func() []Finding{
		func() []Finding { return one(OK, "config", o.Name+" is valid", "") },
		kernel, memory, openFiles,
		func() []Finding { return socket(c.Agent.Socket) },
		func() []Finding { return detectors(c.Detectors) },
		func() []Finding { return folders(c) },
		func() (out []Finding) { broker, out = reach(ctx, c); return out },
		func() []Finding { return lake(c, broker) },
		func() []Finding { return httpListen(ctx, c.HTTP.Listen) },
		clock.findings, // the last one, so that it has watched for a while
	}
	for _, check := range checks {
		if err := ctx.Err(); err != nil {
			return failed, err
		}
		for _, f := range check() {
			if f.Level == Fail {
				failed++
			}
			if err := f.write(o.Out, o.JSON); err != nil {
				return failed, err
			}
		}
	}
	return failed, nil
}

func one(level, check, found, do string) []Finding {
	return []Finding{{Level: level, Check: check, Found: found, Do: do}}
}

func (f *Finding) write(w io.Writer, asJSON bool) error {
	if asJSON {
		text, err := json.Marshal(f)
		if err != nil {
			panic("BUG: a finding is always JSON: " + err.Error())
		}
		_, err = w.Write(append(text, '\n'))
		return err
	}
	line := fmt.Sprintf("%-4s  %-11s %s", f.Level, f.Check, f.Found)
	if f.Do != "" {
		line += "; " + f.Do
	}
	_, err := fmt.Fprintln(w, printable(line))
	return err
}

// printable makes one harmless line of a text that holds answers of others.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError:
			return '?'
		}
		return r
	}, s)
}

// reach looks for the broker of the configuration. It is nil when none answers.
func reach(ctx context.Context, c *config.Config) (*bus.Broker, []Finding) {
	if c.Bus.UsesKafka() {
		return reachKafka(ctx, c)
	}
	held := ""
	if c.Bus.URL == "" {
		held = lockHolder(storeLock(c))
	}
	o, err := pipeline.NATSOptions(c.Bus)
	if err != nil && c.Bus.URL == "" { // the bus of the process alone
		if held != "" {
			return nil, one(Warn, "bus", "in use by "+held+", which lets nobody else reach it",
				"set bus.embedded.listen to look at it")
		}
		return nil, one(OK, "bus", "sonde run starts it, for itself alone", "")
	}
	if err != nil {
		return nil, one(Fail, "bus", err.Error(), "")
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	broker, err := bus.Probe(ctx, o)
	shown := o.URL
	switch {
	case err == nil && c.Bus.URL == "" && held == "":
		return &broker, append(one(Fail, "bus", shown+" is taken by a broker that does not use "+c.Bus.Embedded.StoreDir,
			"set bus.url to that broker, or bus.embedded.listen to another address"), brokerLimits(c, &broker)...)
	case err == nil:
		found := fmt.Sprintf("%s answers, NATS %s", shown, broker.Version)
		if held != "" {
			found += ", of " + held
		}
		return &broker, append(append(one(OK, "bus", found, ""), brokerLimits(c, &broker)...),
			differences(c, "stream", &broker)...)
	case c.Bus.URL != "":
		return nil, one(Fail, "bus", shown+" cannot be used: "+err.Error(),
			"start the broker, or change bus.url, bus.user and bus.nats")
	case held != "":
		return nil, one(Fail, "bus", fmt.Sprintf("%s is held by %s, and %s does not answer: %v", c.Bus.Embedded.StoreDir,
			held, shown, err), "stop that process, or set bus.embedded.listen as it has it")
	}
	if err := bindable(c.Bus.Embedded.Listen); err != nil {
		return nil, one(Fail, "bus", "bus.embedded.listen cannot be used: "+err.Error(), "choose another address")
	}
	return nil, one(OK, "bus", "not running; sonde run starts it on "+shown, "")
}

// differences are what a stream of ours would have otherwise.
func differences(c *config.Config, what string, b *bus.Broker) []Finding {
	var out []Finding
	for _, d := range b.Differences {
		out = append(out, Finding{Warn, what, c.Bus.Stream + ": " + d, "change the " + what + " when that is not wanted"})
	}
	return out
}

// brokerLimits compares what the broker takes with what is sent.
func brokerLimits(c *config.Config, b *bus.Broker) []Finding {
	most, of := b.MaxPayload, "max_payload of the broker"
	if b.MaxMsgSize > 0 && b.MaxMsgSize < most {
		most, of = b.MaxMsgSize, "max_msg_size of the stream"
	}
	if c.Bus.UsesKafka() {
		of = "max.message.bytes of the topic"
	}
	batch := int64(c.Agent.BatchBytes)
	found := fmt.Sprintf("messages of up to %s are taken (%s)", config.Size(most), of)
	var out []Finding
	switch {
	case most < 2*batch:
		out = one(Fail, "bus size", fmt.Sprintf("%s, and agent.batch_bytes is %s, plus a row and names", found,
			c.Agent.BatchBytes), fmt.Sprintf("raise %s to 32MiB, or lower agent.batch_bytes to %s", of, config.Size(most/2)))
	case most < bus.MaxPayloadBytes:
		out = one(Warn, "bus size", found+"; larger rows become dead letters", "raise it to 32MiB when a hook has such rows")
	default:
		out = one(OK, "bus size", found, "")
	}
	s := b.Stream
	switch {
	case s == nil:
		return append(out, Finding{OK, "stream", c.Bus.Stream + " does not exist yet; sonde run makes it", ""})
	case len(b.Losses) > 0:
		return append(out, Finding{Fail, "stream", s.Name + " loses messages or order: " + strings.Join(b.Losses, ", "),
			"change it, or name another one in bus.stream"})
	case b.MaxMsgs > 0 && s.Messages > uint64(b.MaxMsgs)/10*9:
		return append(out, nearlyFull(s.Name, fmt.Sprintf("%d of %d messages", s.Messages, b.MaxMsgs)))
	case s.MaxBytes > 0 && s.Bytes > s.MaxBytes/10*9:
		return append(out, nearlyFull(s.Name, roughly(s.Bytes)+" of "+roughly(s.MaxBytes)))
	}
	limit := "no limit"
	if s.MaxBytes > 0 {
		limit = "of " + roughly(s.MaxBytes)
	}
	return append(out, Finding{OK, "stream", fmt.Sprintf("%s has %d messages, %s, %s", s.Name, s.Messages,
		roughly(s.Bytes), limit), ""})
}

func nearlyFull(stream, what string) Finding {
	return Finding{Warn, "stream", stream + " is nearly full, " + what + "; then engines drop or wait",
		"run a materializer, which trims it, or raise its limit"}
}
