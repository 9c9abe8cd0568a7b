package oracle

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"sonde/bus"
	"sonde/lakehouse"
	"sonde/lakehouse/account"
)

// Laws are the two laws at one moment, in rows.
type Laws struct {
	// As the agent counts them, live.
	Captured, Acknowledged, Dropped, Aborted, Lost, DeadLettered, InFlight uint64

	Stored  uint64 // in the lake
	Pending uint64 // messages that the lake has not taken yet
}

// LawsOf reads the live ledger from the agent's metrics, series by name with
// labels, and the rest from an account and from the stream.
func LawsOf(metrics map[string]float64, a *account.Account, pending uint64) Laws {
	l := Laws{Captured: uint64(metrics["sonde_producer_captured_rows"]),
		InFlight: uint64(metrics["sonde_producer_inflight_rows"]), Stored: a.Stored, Pending: pending}
	classes := map[string]*uint64{"acknowledged": &l.Acknowledged, "dropped": &l.Dropped, "aborted": &l.Aborted,
		"lost": &l.Lost, "dead_lettered": &l.DeadLettered}
	for series, rows := range metrics {
		for class, sum := range classes {
			if strings.HasPrefix(series, "sonde_producer_rows_total{") && strings.Contains(series, `class="`+class+`"`) {
				*sum += uint64(rows)
			}
		}
	}
	return l
}

// Err is an error when a law does not hold at rest.
func (l Laws) Err() error {
	sum := l.Acknowledged + l.Dropped + l.Aborted + l.Lost + l.DeadLettered + l.InFlight
	if sum != l.Captured || sum == 0 {
		return fmt.Errorf("the first law does not hold: %v", l)
	}
	if l.Acknowledged != l.Stored || l.Pending != 0 {
		return fmt.Errorf("the second law does not hold: %v", l)
	}
	return nil
}

func (l Laws) String() string {
	return fmt.Sprintf("captured %d = acknowledged %d + dropped %d + aborted %d + lost %d + dead-lettered %d + "+
		"in flight %d; acknowledged %d = stored %d + pending (%d messages)", l.Captured, l.Acknowledged, l.Dropped,
		l.Aborted, l.Lost, l.DeadLettered, l.InFlight, l.Acknowledged, l.Stored, l.Pending)
}

// Pending counts the messages of the stream of a NATS server that a lake has not taken.
func Pending(ctx context.Context, busURL, lakeDir string) (uint64, error) {
	b, err := bus.OpenNATS(ctx, bus.NATSOptions{URL: busURL, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return 0, fmt.Errorf("count the messages that the lake has not taken: %w", err)
	}
	defer b.Close()
	return PendingOn(ctx, b, lakeDir)
}

// PendingOn is Pending of any bus.
func PendingOn(ctx context.Context, b bus.Bus, lakeDir string) (uint64, error) {
	lake, err := lakehouse.Open(lakeDir)
	if err != nil {
		return 0, err
	}
	pending, sources := uint64(0), lake.Sources()
	for n := range b.Partitions() {
		info, err := b.Info(ctx, n)
		if err != nil {
			return 0, fmt.Errorf("count the messages that the lake has not taken: %w", err)
		}
		source := sources[n]
		if source.Incarnation == "" && info.Last == 0 { // nothing was ever there
			continue
		}
		if source.Incarnation != info.Incarnation {
			return 0, fmt.Errorf("the lake is of stream %s, made at %s; the bus has one made at %s", source.Stream,
				source.Incarnation, info.Incarnation)
		}
		pending += info.Last + 1 - min(source.Next, info.Last+1)
	}
	return pending, nil
}
