package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sonde/trials/fleet"
	"sonde/trials/oracle"
)

// restLimit is how long the pipeline may take to come to rest after the last fault: the
// engines tell what died with those before them, and everything is committed.
const restLimit = 3 * time.Minute

// judge ends the load, lets everything come to rest, and asks for the account of every
// row.
func (w *world) judge(ctx context.Context, r *result) error {
	w.calm()
	w.load.Wait()
	var witnesses []string
	for _, e := range w.engines {
		witnesses = append(witnesses, e.witness)
	}
	if err := oracle.AwaitObituaries(ctx, w.lake, restLimit, witnesses...); err != nil {
		return err
	}
	for _, e := range w.engines {
		if err := e.Stop(stopGrace); err != nil {
			return err
		}
	}
	all := filepath.Join(w.dir, "witness", "all")
	if err := gather(all, witnesses); err != nil {
		return err
	}
	account, err := oracle.AwaitRest(ctx, w.lake, all, restLimit)
	if err != nil {
		return err
	}
	r.captured, r.stored = account.Expected, account.Stored
	metrics, err := fleet.Metrics("http://" + w.agentHTTP + "/metrics")
	if err != nil {
		return err
	}
	laws := oracle.LawsOf(metrics, account, 0)
	laws.Stored = laws.Acknowledged // The agent counts its own life; the dataset has those before it, too.
	if err := errors.Join(laws.Err(), w.nothingPending(ctx), w.compare(ctx, r, all)); err != nil {
		return err
	}
	if err := account.Balance(); err != nil {
		return fmt.Errorf("the account does not balance: %w", err)
	}
	return nil
}

// nothingPending is an error when the stream has messages that the dataset has not.
func (w *world) nothingPending(ctx context.Context) error {
	b, err := w.broker.open(ctx)
	if err != nil {
		return err
	}
	defer b.Close()
	pending, err := oracle.PendingOn(ctx, b, w.lake)
	if err == nil && pending > 0 {
		err = fmt.Errorf("the dataset is at rest without the last %d messages of the stream", pending)
	}
	return err
}

// compare judges each row that an engine computed, and charges each that is not stored
// to the fault in whose time its request was sent.
func (w *world) compare(ctx context.Context, r *result, witness string) error {
	lost := map[int]int{}
	var page bytes.Buffer
	report, err := oracle.CompareEach(ctx, &page, w.lake, witness, func(k oracle.Key) { lost[chargedTo(k.Request)]++ })
	if report != nil {
		r.named = uint64(report.Named)
		for _, rows := range report.Defects {
			r.unexplained += uint64(rows)
		}
	}
	for i := range r.outcomes {
		o := &r.outcomes[i]
		o.named = lost[o.Number]
		delete(lost, o.Number)
		if o.Together { // of two faults at once, requests name the first
			o.named = 0
		}
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, &page)
	}
	return nil
}

// chargedTo is the number of the fault that a request's id names.
func chargedTo(request string) int {
	number, _, _ := strings.Cut(strings.TrimPrefix(request, "f"), "-")
	n, err := strconv.Atoi(number)
	if err != nil {
		return -1
	}
	return n
}

// gather links the witness files of all engines into one folder.
func gather(into string, from []string) error {
	if err := os.MkdirAll(into, 0o755); err != nil {
		return err
	}
	for _, dir := range from {
		files, err := filepath.Glob(filepath.Join(dir, "*.witness"))
		if err != nil {
			return err
		}
		for _, file := range files {
			if err := os.Link(file, filepath.Join(into, filepath.Base(file))); err != nil {
				return err
			}
		}
	}
	return nil
}
