// Package top shows what the processes of sonde run do, from what they say at
// /metrics and /readyz. It asks them once a second and changes nothing.
package top

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	// MaxURLs bounds the processes that are asked.
	MaxURLs = 64
	// keep is how many answers of a process are kept: rates are over the oldest.
	keep = 6
)

// Options of a view.
type Options struct {
	URLs     []string // of processes, as Base gives them
	Once     bool     // show one view, after two answers
	JSON     bool     // one object a view
	Interval time.Duration
	Screen   func() (width, height int) // of a terminal, which is redrawn; nil: views follow each other
	Out      io.Writer
}

// top asks and remembers.
type top struct {
	o       Options
	client  http.Client
	history [][]*scrape // of each process, oldest first
	version float64     // of the lake
	changed time.Time   // since when it has been so; zero: not seen yet
}

// Top shows a view each interval until ctx ends, which is no error. With Once it
// fails when no process could be read.
func Top(ctx context.Context, o Options) error {
	t := &top{o: o, history: make([][]*scrape, len(o.URLs))}
	defer t.client.CloseIdleConnections()
	tick := time.NewTicker(o.Interval)
	defer tick.Stop()
	for round := 0; ; round++ {
		v := t.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !o.Once || round == 1 {
			if err := t.show(v); err != nil {
				return err
			}
		}
		if o.Once && round == 1 {
			for _, p := range v.Processes {
				if p.Error == "" {
					return nil
				}
			}
			return errors.New("read metrics: no process answers; is http.listen of sonde run another address?")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look asks all processes at once and puts their answers together.
func (t *top) look(ctx context.Context) *View {
	answers, failures := make([]*scrape, len(t.o.URLs)), make([]error, len(t.o.URLs))
	var asked sync.WaitGroup
	for i, base := range t.o.URLs {
		asked.Go(func() { answers[i], failures[i] = read(ctx, &t.client, base) })
	}
	asked.Wait()
	v := &View{}
	for i, base := range t.o.URLs {
		p := Process{URL: redacted(base)}
		if err := failures[i]; err != nil {
			p.Error = clip(why(err))
			t.history[i] = nil
			v.Processes = append(v.Processes, p)
			continue
		}
		now := answers[i]
		t.history[i] = append(t.history[i], now)
		t.history[i] = t.history[i][max(0, len(t.history[i])-keep):]
		if now.healthy {
			ready := len(now.missing) == 0
			p.Ready, p.Missing = &ready, now.missing
		}
		v.Processes = append(v.Processes, p)
		v.add(p.URL, window{old: t.history[i][0], now: now})
	}
	t.note(v.Lake)
	v.sort()
	return v
}

// note remembers since when the lake has its version.
func (t *top) note(l *Lake) {
	if l == nil {
		return
	}
	if now := time.Now(); t.changed.IsZero() || l.Version != t.version {
		t.version, t.changed = l.Version, now
	} else {
		l.UnchangedFor = now.Sub(t.changed).Seconds()
	}
}

// why leaves out of an error of HTTP the address, which the view says beside it.
func why(err error) string {
	var of *url.Error
	var op *net.OpError
	switch {
	case errors.As(err, &op):
		return op.Err.Error()
	case errors.As(err, &of):
		return of.Err.Error()
	}
	return err.Error()
}

func redacted(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return "its address"
	}
	return u.Redacted()
}

// show puts one view out.
func (t *top) show(v *View) error {
	if t.o.JSON {
		text, err := json.Marshal(v)
		if err != nil {
			panic("BUG: a view is always JSON: " + err.Error())
		}
		_, err = t.o.Out.Write(append(text, '\n'))
		return err
	}
	width, height := defaultWidth, defaultHeight
	before, after, eol := "", "", "\n"
	if t.o.Screen != nil {
		if w, h := t.o.Screen(); w > 0 && h > 0 {
			width, height = w, h
		}
		before, after, eol = "\x1b[H", "\x1b[J", "\x1b[K\n" // home; erase what follows; erase the rest of a line
	} else if !t.o.Once {
		after = "\n"
	}
	title := "sonde top  " + time.Now().Format("15:04:05") + fmt.Sprintf("  rates over %.1f s", v.WindowS)
	lines := append([]string{cut(title, width)}, v.lines(width, height-2)...) // the cursor stands in the last line
	_, err := io.WriteString(t.o.Out, before+strings.Join(lines, eol)+eol+after)
	return err
}
