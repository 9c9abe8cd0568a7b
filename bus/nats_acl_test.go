package bus_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sonde/bus"
	"sonde/bus/natstest"
)

// tenants is a server with the users of deploy/nats/tenants.conf, and how each of them
// opens a bus.
func tenants(t *testing.T) (s *natstest.Server, as func(user string) bus.NATSOptions) {
	t.Helper()
	for _, name := range []string{"MATERIALIZER", "AGENT_ALPHA", "AGENT_BETA", "DETECTOR", "READER_BETA"} {
		t.Setenv(name+"_PASSWORD", secret)
	}
	file, err := filepath.Abs("../deploy/nats/tenants.conf")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	below, err := filepath.Rel(dir, file)
	if err != nil {
		t.Fatal(err)
	}
	s = natstest.Need(t, natstest.Options{Dir: dir, Lines: []string{quoted("include %s", below)}})
	return s, func(user string) bus.NATSOptions {
		return bus.NATSOptions{URL: s.URL, MustExist: user != "materializer", Security: bus.NATSSecurity{User: user,
			Password: secret, InboxPrefix: "_INBOX_" + strings.ReplaceAll(user, "-", "_")}}
	}
}

// outcome publishes one message and waits for what becomes of it.
func outcome(t *testing.T, b bus.Bus, subject string) error {
	t.Helper()
	done := make(chan error, 1)
	err := b.Publish(deadline(t), bus.Message{Subject: subject, Data: []byte(subject)},
		func(_ uint64, err error) { done <- err })
	if err != nil {
		return err
	}
	return <-done
}

// The fear: an agent writes rows into the data of another tenant, or waits for ever to
// do so, and holds up its own.
func TestAnAgentPublishesForItsTenantAlone(t *testing.T) {
	_, as := tenants(t)
	all := openNATS(t, as("materializer"))
	alpha, beta := openNATS(t, as("agent-alpha")), openNATS(t, as("agent-beta"))
	for subject, b := range map[string]bus.Bus{"sonde.v1.alpha.e.0.vectors.h.0": alpha,
		"sonde.v1.beta.e.0.vectors.h.0": beta} {
		if err := outcome(t, b, subject); err != nil {
			t.Errorf("%s: %v", subject, err)
		}
	}
	for subject, b := range map[string]bus.Bus{"sonde.v1.beta.e.0.vectors.h.0": alpha,
		"sonde.v1.alpha.e.0.requests.-._": beta, "sonde.v1.alphabet.e.0.vectors.h.0": alpha,
		"sonde.v1._.e.0.vectors.h.0": alpha} {
		err := outcome(t, b, subject)
		if !errors.Is(err, bus.ErrRefused) || !strings.Contains(err.Error(), "access rules of the broker") {
			t.Errorf("%s of another tenant: %v", subject, err)
		}
	}
	if err := outcome(t, alpha, "sonde.v1.alpha.e.0.vectors.h.1"); err != nil {
		t.Errorf("behind a refused message: %v", err)
	}
	if got := readAll(t, all); len(got) != 3 {
		t.Errorf("the stream holds %d messages; want 3", len(got))
	}
}

// The fear: a reader of one tenant gets rows of another, from the stream or live.
func TestAReaderSeesItsTenantAlone(t *testing.T) {
	s, as := tenants(t)
	all := openNATS(t, as("materializer"))
	alpha, beta := openNATS(t, as("agent-alpha")), openNATS(t, as("agent-beta"))
	reader := openNATS(t, as("reader-beta"))
	var foreign, own atomic.Int64
	for _, filter := range []string{"sonde.v1.>", "sonde.v1.alpha.>", "sonde.v1.beta.>"} {
		stop, err := reader.Hear([]string{filter}, func(subject string, _ []byte) {
			if own.Add(1); !bus.Match("sonde.v1.beta.>", subject) {
				foreign.Add(1)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
	}
	mine := subscribe(t, reader, bus.SubscribeOptions{Filters: []string{"sonde.v1.beta.>"}})
	for i := range 3 {
		for tenant, b := range map[string]bus.Bus{"alpha": alpha, "beta": beta} {
			if err := outcome(t, b, fmt.Sprintf("sonde.v1.%s.e.0.vectors.h.%d", tenant, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 3 {
		if d := next(t, mine); d.Subject != fmt.Sprint("sonde.v1.beta.e.0.vectors.h.", i) {
			t.Errorf("the reader of beta reads %s", d.Subject)
		}
	}
	for _, filters := range [][]string{nil, {"sonde.v1.alpha.>"}, {"sonde.v1.>"},
		{"sonde.v1.alpha.>", "sonde.v1.beta.>"}} {
		theirs := subscribe(t, reader, bus.SubscribeOptions{Filters: filters})
		d, err := theirs.Next(deadline(t))
		if err == nil || !strings.Contains(err.Error(), "access rules of the broker do not allow") {
			t.Errorf("reading %q: %s, %v", filters, d.Subject, err)
		}
	}
	if got := readAll(t, all); len(got) != 6 {
		t.Errorf("the stream holds %d messages; want 6", len(got))
	}
	askPastTheRules(t, s, as("reader-beta"))
	if foreign.Load() != 0 || own.Load() == 0 {
		t.Errorf("the reader of beta heard %d messages live, %d of others", own.Load(), foreign.Load())
	}
}

// askPastTheRules tries what our client does not do: a filter in the question that differs
// from the one in its subject, single messages, other readers' names, their answers.
func askPastTheRules(t *testing.T, s *natstest.Server, o bus.NATSOptions) {
	t.Helper()
	nc, err := nats.Connect(s.URL, nats.UserInfo(o.Security.User, secret), nats.CustomInboxPrefix(o.Security.InboxPrefix),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for _, filter := range []string{`"filter_subject": "sonde.v1.alpha.>"`, `"filter_subjects": ["sonde.v1.alpha.>"]`,
		`"filter_subject": ""`} {
		answer, err := nc.Request("$JS.API.CONSUMER.CREATE.SONDE.sly.sonde.v1.beta.>",
			fmt.Appendf(nil, `{"stream_name": "SONDE", "config": {"name": "sly", "ack_policy": "none", %s}}`, filter), time.Second)
		if err != nil || !strings.Contains(string(answer.Data), `"error"`) {
			t.Errorf("a consumer with %s: %v, %v", filter, answer, err)
		}
	}
	for _, subject := range []string{"$JS.API.STREAM.MSG.GET.SONDE", "$JS.API.DIRECT.GET.SONDE",
		"$JS.API.CONSUMER.NAMES.SONDE", "$JS.API.STREAM.DELETE.SONDE", "$JS.API.STREAM.PURGE.SONDE", "$JS.API.STREAM.LIST"} {
		if answer, err := nc.Request(subject, []byte(`{"seq": 1}`), 300*time.Millisecond); err == nil {
			t.Errorf("%s is answered: %s", subject, answer.Data)
		}
	}
	heard, err := nc.SubscribeSync("_INBOX_materializer.>")
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	if m, err := heard.NextMsg(300 * time.Millisecond); err == nil {
		t.Errorf("it hears answers to others: %s", m.Subject)
	}
}

// The fear: anybody stops anybody's request.
func TestOnlyTheDetectorStopsRequests(t *testing.T) {
	_, as := tenants(t)
	openNATS(t, as("materializer"))
	alpha := openNATS(t, as("agent-alpha"))
	stop, err := alpha.Serve("sonde.cmd.alpha.e.0.abort", func([]byte) []byte { return []byte("stopped") })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	detector := openNATS(t, as("detector"))
	reply, err := detector.Request(deadline(t), "sonde.cmd.alpha.e.0.abort", nil)
	if err != nil || string(reply) != "stopped" {
		t.Errorf("the detector: %q, %v", reply, err)
	}
	for _, user := range []string{"agent-alpha", "agent-beta", "reader-beta", "materializer"} {
		ctx, cancel := contextOf(20 * time.Second)
		reply, err := openNATS(t, as(user)).Request(ctx, "sonde.cmd.alpha.e.0.abort", nil)
		cancel()
		if err == nil || !strings.Contains(err.Error(), "access rules of the broker") ||
			errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %q, %v", user, reply, err)
		}
	}
}

// With an account for each tenant, not even the names of others can be seen: every
// account has a stream of its own.
func TestAccountsShareNothing(t *testing.T) {
	s := natstest.Need(t, natstest.Options{Lines: []string{`accounts {
		ALPHA { jetstream: enabled, users: [ { user: alpha, password: a } ] }
		BETA { jetstream: enabled, users: [ { user: beta, password: b } ] } }`}})
	alpha := openNATS(t, bus.NATSOptions{URL: s.URL, Security: bus.NATSSecurity{User: "alpha", Password: "a"}})
	beta := openNATS(t, bus.NATSOptions{URL: s.URL, Security: bus.NATSSecurity{User: "beta", Password: "b"}})
	heard := make(chan string, 10)
	stop, err := beta.Hear([]string{">"}, func(subject string, _ []byte) { heard <- subject })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if err := outcome(t, alpha, "sonde.v1.alpha.e.0.vectors.h.0"); err != nil {
		t.Fatal(err)
	}
	if info, err := beta.Info(deadline(t), 0); err != nil || info.Last != 0 {
		t.Errorf("beta's stream after alpha's message: %+v, %v", info, err)
	}
	nc, err := nats.Connect(s.URL, nats.UserInfo("beta", "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(deadline(t), "SONDE")
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(deadline(t), jetstream.WithSubjectFilter(">"))
	if err != nil || len(info.State.Subjects) != 0 {
		t.Errorf("beta sees the subjects %v, %v", info.State.Subjects, err)
	}
	for {
		select {
		case subject := <-heard:
			if bus.Match("sonde.>", subject) {
				t.Errorf("beta heard %s", subject)
			}
			continue
		default:
		}
		break
	}
}
