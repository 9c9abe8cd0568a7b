package producer

import (
	"context"
	"sync"
	"time"

	"sonde/ring2"
	"sonde/schema"
)

// abortTimeout bounds the wait for the engine's answer to one command.
const abortTimeout = 2 * time.Second

// requestTable says whose a request is, to abort commands.
type requestTable struct {
	mu      sync.Mutex // a leaf
	tenants map[uint64]string
}

func (t *requestTable) open(number uint64, tenant string) {
	t.mu.Lock()
	t.tenants[number] = tenant
	t.mu.Unlock()
}

func (t *requestTable) forget(number uint64) {
	t.mu.Lock()
	delete(t.tenants, number)
	t.mu.Unlock()
}

func (t *requestTable) belongs(number uint64, tenant string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	owner, known := t.tenants[number]
	return known && owner == tenant
}

// serveAborts answers the abort commands of a tenant for a rank, whichever epoch
// is its current one, from the tenant's first request to the end of the agent.
func (a *Agent) serveAborts(tenant string, name rankName) {
	subject := schema.AbortSubject(tenant, name.engine, name.rank)
	a.servedMu.Lock()
	defer a.servedMu.Unlock()
	if _, served := a.served[subject]; served {
		return
	}
	if len(a.served) >= maxAbortSubjects {
		a.counters.unservedAborts.Add(1)
		return
	}
	stop, err := a.o.Bus.Serve(subject, func(data []byte) []byte { return a.abort(tenant, name, data).Encode() })
	if err != nil {
		a.counters.unservedAborts.Add(1)
		a.log.Warn("aborts of a tenant cannot be served", "subject", subject, "error", err)
		return
	}
	a.served[subject] = stop
}

func (a *Agent) stopServing() {
	a.servedMu.Lock()
	defer a.servedMu.Unlock()
	for subject, stop := range a.served {
		stop()
		delete(a.served, subject)
	}
}

// abort passes a command on to the engine that it means. It can only hit a
// request of the tenant whose subject it came on.
func (a *Agent) abort(tenant string, name rankName, data []byte) (reply schema.AbortReply) {
	defer func() { a.counters.abort(reply.Outcome) }()
	c, err := schema.ParseAbortCommand(data)
	if err != nil {
		return schema.AbortReply{Outcome: schema.AbortError, Error: err.Error()}
	}
	r := a.reader(name, c.Epoch)
	if r == nil || !r.requests.belongs(c.Number, tenant) {
		return schema.AbortReply{Outcome: schema.AbortUnknown}
	}
	ctx, cancel := context.WithTimeout(context.Background(), abortTimeout)
	defer cancel()
	outcome, length, err := r.s.Abort(ctx, ring2.Abort{Epoch: c.Epoch, Number: c.Number, Sample: uint32(c.Sample),
		EngineID: c.EngineID, Position: uint32(c.Position), ExpiresWallNS: uint64(c.ExpiresWallNS)})
	if err != nil {
		return schema.AbortReply{Outcome: schema.AbortError, Error: err.Error()}
	}
	return schema.AbortReply{Outcome: outcome.String(), FinalLength: int32(min(length, 1<<31-1))}
}

// reader is the rank that reads an epoch, or nil.
func (a *Agent) reader(name rankName, epoch uint64) *rank {
	a.mu.Lock()
	defer a.mu.Unlock()
	for r := range a.ranks {
		if r.name == name && r.own.id == epoch {
			return r
		}
	}
	return nil
}
