package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Reasons of failures.
const (
	failedFull         = "full"         // the stream is at its bound
	failedUnavailable  = "unavailable"  // the broker says so
	failedTimeout      = "timeout"      // no answer
	failedDisconnected = "disconnected" // the connection broke
	failedOrder        = "order"        // an id belongs to a copy from before its turn
)

// tickEvery is how often a silent broker is noticed.
const tickEvery = 250 * time.Millisecond

// run sends what is in the window until the bus is closed.
func (p *publisher) run() {
	for {
		c, err := p.n.link.get(context.Background())
		if err != nil {
			return
		}
		p.session(c)
	}
}

// session sends over one connection until it ends.
func (p *publisher) session(c *connection) {
	inbox := c.nc.NewInbox()
	answers, err := c.nc.Subscribe(inbox+".*.*", func(m *nats.Msg) { p.answer(inbox, m) })
	if err == nil {
		err = answers.SetPendingLimits(-1, -1) // one small answer for each message of the window
	}
	if err != nil {
		c.cancel()
		return
	}
	p.mu.Lock()
	old := p.failure
	if old == nil && p.sent > 0 {
		old = &failure{failedDisconnected, errors.New("the connection broke")}
	}
	p.mu.Unlock()
	if old != nil {
		p.n.metrics.failures.WithLabelValues(old.reason).Inc()
		p.rewind(old.reason == failedDisconnected)
	}
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	var r recovery
	for c.Err() == nil {
		if e := p.next(); e != nil {
			p.send(c, inbox, e)
			continue
		}
		if f := p.broken(); f != nil {
			r.recover(p, c, f)
			continue
		}
		select {
		case <-p.signal:
		case <-tick.C:
		case <-c.Done():
		}
	}
}

// next is the message to send now, or nil.
func (p *publisher) next() *entry {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.sent < len(p.entries) && p.entries[p.sent].err != nil {
		p.sent++
	}
	if p.failure != nil || p.sent == len(p.entries) || p.unknown >= p.limit {
		return nil
	}
	e := p.entries[p.sent]
	e.sent, e.reading, e.awaiting = true, true, true
	if p.unknown == 0 {
		p.heard = time.Now()
	}
	p.unknown++
	p.sent++
	return e
}

func (p *publisher) send(c *connection, inbox string, e *entry) {
	m := nats.NewMsg(p.n.o.wireSubject(e.m.Subject, p.partition))
	m.Data = e.m.Data
	// The attempt changes in this goroutine alone.
	m.Reply = inbox + "." + strconv.FormatUint(p.attempt, 10) + "." + strconv.FormatUint(e.index, 10)
	if e.m.ID != "" {
		id := e.m.ID
		if e.copies > 0 {
			id += "+" + strconv.Itoa(e.copies)
		}
		m.Header.Set(nats.MsgIdHdr, id)
	}
	err := c.nc.PublishMsg(m)
	p.mu.Lock()
	e.reading = false
	if errors.Is(err, nats.ErrMaxPayload) && e.err == nil {
		e.err = fmt.Errorf("publish %d bytes to %s; the broker's max_payload is %d: %w", len(e.m.Data), e.m.Subject,
			c.nc.MaxPayload(), ErrRefused)
	} else if err != nil {
		c.cancel()
	}
	stop := e.err != nil
	answered := e.answered
	p.mu.Unlock()
	if stop {
		p.finish(e)
	}
	if stop || answered {
		p.settle()
	}
}

// publishAnswer is what the broker says about one message.
type publishAnswer struct {
	Error *struct {
		Code        int    `json:"code"`
		ErrCode     int    `json:"err_code"`
		Description string `json:"description"`
	} `json:"error"`
	Stream    string `json:"stream"`
	Seq       uint64 `json:"seq"`
	Duplicate bool   `json:"duplicate"`
}

// Codes of JetStream that no retry changes.
const (
	codeMessageTooLarge = 10054
	codeHeaderTooLarge  = 10097
	codeStoreFailed     = 10077 // with a text
	codeSubjectMismatch = 10106
)

// answer books what the broker answered.
func (p *publisher) answer(inbox string, m *nats.Msg) {
	attempt, index, ok := strings.Cut(strings.TrimPrefix(m.Subject, inbox+"."), ".")
	a, err1 := strconv.ParseUint(attempt, 10, 64)
	i, err2 := strconv.ParseUint(index, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return
	}
	seq, duplicate, f, refused := p.readAnswer(m)
	p.mu.Lock()
	if a != p.attempt || i < p.base || i-p.base >= uint64(len(p.entries)) || !p.entries[i-p.base].awaiting {
		p.mu.Unlock()
		return
	}
	e := p.entries[i-p.base]
	p.stopAwaiting(e)
	p.heard = time.Now()
	switch {
	case refused != nil && e.err == nil:
		e.err = refused
	case f != nil && p.failure == nil:
		p.failure = f
	case duplicate && seq < p.highest && p.failure == nil:
		// A copy from before its turn, stored while an earlier message was not taken.
		e.copies++
		p.failure = &failure{failedOrder, fmt.Errorf("position %d stands before its turn", seq)}
	case f == nil && refused == nil:
		e.answered, e.seq, p.highest, p.stuck = true, seq, seq, ""
		p.limit = min(2*p.limit, maxWindowMessages)
	}
	p.mu.Unlock()
	if duplicate {
		p.n.metrics.duplicates.Inc()
	}
	p.settle()
	p.wake()
}

// readAnswer is the position, why the window fails, or why the message is refused.
func (p *publisher) readAnswer(m *nats.Msg) (seq uint64, duplicate bool, f *failure, refused error) {
	if len(m.Data) == 0 {
		return 0, false, &failure{failedUnavailable,
			errors.New("nobody stores the subject: the stream is missing, or has no leader")}, nil
	}
	var a publishAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return 0, false, &failure{failedUnavailable, fmt.Errorf("read the broker's answer: %w", err)}, nil
	}
	if a.Error == nil {
		if want := p.n.o.streamName(p.partition); a.Stream != want || a.Seq == 0 {
			return 0, false, &failure{failedUnavailable, fmt.Errorf("stream %q took the message, not %s", a.Stream, want)}, nil
		}
		return a.Seq, a.Duplicate, nil, nil
	}
	err := fmt.Errorf("the broker answered %q, code %d", a.Error.Description, a.Error.ErrCode)
	switch code := a.Error.ErrCode; {
	case code == codeMessageTooLarge, code == codeHeaderTooLarge, code == codeSubjectMismatch,
		code == codeStoreFailed && strings.Contains(a.Error.Description, "too large"):
		return 0, false, nil, fmt.Errorf("%w: %w", ErrRefused, err)
	case code == codeStoreFailed && strings.HasPrefix(a.Error.Description, "maximum"):
		return 0, false, &failure{failedFull, err}, nil
	}
	return 0, false, &failure{failedUnavailable, err}, nil
}

// broken is the failure of this attempt, once nothing more can be answered.
func (p *publisher) broken() *failure {
	p.mu.Lock()
	defer p.mu.Unlock()
	late := p.unknown > 0 && time.Since(p.heard) >= p.answerTimeout
	switch {
	case p.failure != nil && (p.unknown == 0 || late):
		return p.failure
	case late:
		return &failure{failedTimeout, fmt.Errorf("no answer in %s", p.answerTimeout)}
	}
	return nil
}

// recovery is the state of a run of failures.
type recovery struct {
	base uint64 // index of the front at the last failure
	wait time.Duration
	told bool
}

// recover waits and starts a new attempt.
func (r *recovery) recover(p *publisher, c *connection, f *failure) {
	p.mu.Lock()
	front := p.base
	p.mu.Unlock()
	if front != r.base || r.wait == 0 {
		r.base, r.wait, r.told = front, firstRedial, false
	}
	p.n.metrics.failures.WithLabelValues(f.reason).Inc()
	if !r.told && r.wait >= lastRedial {
		r.told = true
		p.mu.Lock()
		p.stuck = "messages are not taken, " + f.reason + ": " + f.err.Error()
		p.mu.Unlock()
		p.n.log.Warn("the bus does not take messages; publishing waits", "stream", p.n.o.streamName(p.partition),
			"reason", f.reason, "error", f.err)
	}
	sleep(c, r.wait)
	r.wait = min(2*r.wait, lastRedial)
	if f.reason == failedUnavailable {
		ctx, cancel := context.WithTimeout(c, callTimeout)
		if _, err := p.n.ensureStream(ctx, c, p.partition); err != nil && c.Err() == nil {
			p.n.log.Warn("look for the stream", "error", err)
		}
		cancel()
	}
	p.rewind(false)
}

// rewind starts a new attempt. ordered says that what the broker stored of the
// last one is a first part of it.
func (p *publisher) rewind(ordered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempt++
	p.sent, p.unknown, p.limit, p.failure = 0, 0, 1, nil
	for i, e := range p.entries {
		if e.sent && e.err == nil {
			p.n.metrics.repeated.Inc()
			if !ordered && i > 0 {
				e.copies++
			}
		}
		e.awaiting, e.answered = false, false
	}
}
