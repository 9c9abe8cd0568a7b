package detector

import (
	"context"
	"errors"
	"sync"

	"sonde/bus"
	"sonde/schema"
)

// outgoing is a detection on its way to the bus.
type outgoing struct {
	header schema.Header
	row    schema.DetectionRow
}

// enqueue hands a detection to the publisher. It never waits: while the bus is away
// scores and aborts go on, and beyond the bound a detection is in the log alone.
func (r *Detector) enqueue(h schema.Header, row schema.DetectionRow) {
	r.progress.leaving.Add(1)
	select {
	case r.queue <- outgoing{h, row}:
	default:
		r.unpublished(&row, "queue_full", errors.New("too many detections wait for the bus"))
	}
}

func (r *Detector) unpublished(row *schema.DetectionRow, reason string, err error) {
	r.progress.leaving.Add(-1)
	r.metrics.unpublished.WithLabelValues(reason).Inc()
	r.o.Logger.Error("detection is not published", "id", row.ID, "detector", row.Detector, "level", row.Level,
		"request", row.Request, "sample", row.Sample, "position", row.Position, "score", row.Score, "outcome", row.Outcome,
		"error", err)
}

// chainID names a chain of detections: those about one tenant, of one partition.
type chainID struct {
	epoch  uint64
	tenant string
}

// publish sends detections, each a message of its own, until the queue is closed and
// empty.
func (r *Detector) publish(ctx context.Context) {
	var inFlight sync.WaitGroup
	defer inFlight.Wait()
	last := map[chainID]schema.Cursor{}
	var seq uint64
	for out := range r.queue {
		if seq++; len(last) >= maxChains {
			clear(last) // a cursor that is too low only says less
		}
		id := chainID{out.header.Epoch, out.header.Tenant}
		out.row.Seq, out.header.Prev = seq, last[id]
		last[id] = schema.Cursor{Seq: seq, Row: 1}
		if r.o.OnDetection != nil {
			r.o.OnDetection(out.row)
		}
		message, err := detectionMessage(out)
		if err != nil {
			r.unpublished(&out.row, "refused", err)
			continue
		}
		inFlight.Add(1)
		err = r.o.Bus.Publish(ctx, message, func(_ uint64, err error) {
			if err != nil {
				r.unpublished(&out.row, reasonOf(err), err)
			} else {
				r.progress.leaving.Add(-1)
			}
			inFlight.Done()
		})
		if err != nil {
			r.unpublished(&out.row, reasonOf(err), err)
			inFlight.Done()
		}
	}
}

func reasonOf(err error) string {
	if errors.Is(err, bus.ErrRefused) {
		return "refused"
	}
	return "closed"
}

func detectionMessage(out outgoing) (bus.Message, error) {
	data, err := schema.EncodeDetections(out.header, []schema.DetectionRow{out.row})
	if err != nil {
		return bus.Message{}, err
	}
	h, err := schema.DecodeHeader(data)
	if err != nil {
		return bus.Message{}, err
	}
	return bus.Message{Subject: schema.Subject(h), ID: schema.MessageID(h), Data: data}, nil
}
