package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"sonde/lakehouse/account"
	"sonde/trials/fleet"
	"sonde/trials/oracle"
	"sonde/trials/steptime"
)

// least is the number of alike steps that a comparison needs.
const least = 500

// printSteps shows what the outage did to the engine's steps, and judges it.
func printSteps(mode, stepLog string, p phases) error {
	steps, err := steptime.Read(stepLog)
	if err != nil {
		return err
	}
	before := steptime.Alike("bus there", steps, sequences, p.before)
	away := steptime.Alike("bus away", steps, sequences, p.away)
	after := steptime.Alike("bus there again", steps, sequences, p.after)
	fmt.Printf("step time, steps with one token of each of %d sequences:\n  %v\n  %v\n  %v\n", sequences, &before, &away,
		&after)
	if len(before.Durations) < least || len(away.Durations) < least {
		return fmt.Errorf("too few steps to compare: at least %d of each", least)
	}
	fmt.Printf("  %s\n  %s\n", steptime.Compare("bus away / bus there:", &away, &before),
		steptime.Compare("noise, bus there again / bus there:", &after, &before))
	if mode == "complete" {
		fmt.Printf("  longest step %v with the bus, %v without; the stall budget is %v a step\n", before.Quantile(1),
			away.Quantile(1), stallBudget)
		if away.Quantile(1) > 2*before.Quantile(1)+2*stallBudget {
			return errors.New("a step took longer than its stall budget allows")
		}
		return nil
	}
	// An engine that waits for its agent would wait for tens of milliseconds a step. A busy
	// machine stretches the slowest steps of every window alike.
	const most = 3
	if away.Quantile(0.5) > most*before.Quantile(0.5) ||
		away.Quantile(0.99) > most*max(before.Quantile(0.99), after.Quantile(0.99)) {
		return fmt.Errorf("steps take more than %d times as long without the bus: the engine waits for it", most)
	}
	return nil
}

// judge shows where each row is, and is an error when one is nowhere, twice, or out
// of order.
func judge(ctx context.Context, mode string, pipe *fleet.Pipeline, a *account.Account, laws oracle.Laws,
	order *order) error {
	fmt.Print(a)
	fmt.Println("by hook: expected, stored, share; the spool drops the lowest priority first")
	for _, h := range a.ByHook {
		if h.Expected > 0 {
			fmt.Printf("  %-16s priority %d %10d %10d %6.1f %%\n", h.Hook, priorityOf(h.Hook), h.Expected, h.Stored,
				100*float64(h.Stored)/float64(h.Expected))
		}
	}
	fmt.Println(laws)
	fmt.Println(order)
	_, err := oracle.CompareWithWitness(ctx, os.Stdout, pipe.Lake, pipe.Witness)
	dropped := a.Dropped["spool_full"]
	switch {
	case mode == "complete" && dropped > 0:
		err = errors.Join(err, fmt.Errorf("the spool dropped %d rows under complete", dropped))
	case mode != "complete" && dropped == 0:
		err = errors.Join(err, errors.New("the spool was not full: play a longer outage, or a smaller spool"))
	}
	return errors.Join(err, a.Balance(), laws.Err(), order.err())
}

func priorityOf(hook string) int {
	switch hook {
	case "token_ids":
		return 2
	case "resid_post":
		return 1
	}
	return 0
}
