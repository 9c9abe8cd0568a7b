package group

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"sonde/bus"
)

// Subject is where all members of all groups tell each other what they do.
const Subject = "sonde.group.members"

// Bounds of a heartbeat: the rest is bounded by that of a broadcast.
const (
	maxName = 256
	maxID   = 64
)

// heartbeat is what a member tells.
type heartbeat struct {
	Kind      string         `json:"kind"`
	Group     string         `json:"group"`
	Member    string         `json:"member"`
	Since     int64          `json:"since"`
	Beat      int            `json:"beat"`             // counts the heartbeats of the member
	Held      map[int]uint64 `json:"held,omitempty"`   // partition -> token; 0: not yet, or there is none
	Wanted    []int          `json:"wanted,omitempty"` // about to be held
	Positions map[int]uint64 `json:"positions,omitempty"`
	Tick      bool           `json:"tick,omitempty"` // the heartbeat of a period
	Ask       bool           `json:"ask,omitempty"`  // others should answer at once: the member is new
	Left      bool           `json:"left,omitempty"` // the member is gone
}

// heartbeat makes the next one.
func (m *Member) heartbeat() heartbeat {
	h := heartbeat{Kind: m.o.Kind, Group: m.o.Name, Member: m.id, Since: m.since, Beat: m.beat + 1, Ask: !m.joined,
		Held: map[int]uint64{}}
	h.Wanted = slices.Sorted(maps.Keys(m.intents))
	for partition := range m.holdings {
		h.Held[partition] = 0
	}
	m.mu.Lock()
	maps.Copy(h.Held, m.tokens)
	m.mu.Unlock()
	if m.o.Positions != nil {
		h.Positions = m.o.Positions()
	}
	return h
}

// queue has a heartbeat sent; one that still waits is out of date.
func (m *Member) queue(h heartbeat) {
	m.beat = h.Beat
	select {
	case unsent := <-m.tell:
		h.Tick = h.Tick || unsent.Tick
	default:
	}
	m.tell <- h // only this goroutine fills it
}

// send sends in a goroutine of its own: a broker may take its time.
func (m *Member) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-m.tell:
			m.broadcast(h)
		}
	}
}

func (m *Member) broadcast(h heartbeat) {
	data, err := json.Marshal(h)
	if err != nil {
		panic("BUG: a heartbeat is no JSON: " + err.Error())
	}
	if err := m.o.Bus.Broadcast(Subject, data); err != nil {
		m.log.Debug("a heartbeat is lost", "error", err)
	}
}

// listen takes what is broadcast, from anybody. What cannot be read, or comes faster
// than it is taken, is as if it had been lost.
func (m *Member) listen(data []byte) {
	var h heartbeat
	if len(data) > bus.MaxBroadcastBytes || json.Unmarshal(data, &h) != nil || h.Member == "" || len(h.Member) > maxID ||
		h.Group == "" || len(h.Group) > maxName || h.Kind != m.o.Kind {
		return
	}
	select {
	case m.heard <- h:
	default:
	}
}

// hear takes a heartbeat and reports whether it is an own one.
func (m *Member) hear(h heartbeat) (own bool) {
	switch {
	case h.Group != m.o.Name:
		m.note(h)
		return false
	case h.Member == m.id:
		m.echo, m.silent = max(m.echo, h.Beat), 0
		if h.Tick {
			m.age++
			m.forget()
		}
		return true
	case h.Left:
		delete(m.peers, h.Member)
		return false
	}
	p := m.peers[h.Member]
	if p == nil {
		if len(m.peers) >= maxMembers-1 {
			return false
		}
		p = &peer{}
		m.peers[h.Member] = p
	}
	p.heartbeat, p.seen = h, m.age
	if h.Ask {
		m.queue(m.heartbeat())
	}
	return false
}

// note remembers how far another group is.
func (m *Member) note(h heartbeat) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.others[h.Group]
	if at == nil {
		if len(m.others) >= maxMembers {
			return
		}
		at = map[int]position{}
		m.others[h.Group] = at
	}
	for partition, next := range h.Positions {
		if partition >= 0 && partition < m.o.Bus.Partitions() {
			at[partition] = position{next, m.age}
		}
	}
}

// forget drops members that are silent for too long, and old positions.
func (m *Member) forget() {
	for id, p := range m.peers {
		if m.age-p.seen > deadAfter {
			delete(m.peers, id)
			m.log.Warn("a member of the group is silent: its partitions are taken over", "member", id)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for group, at := range m.others {
		maps.DeleteFunc(at, func(_ int, p position) bool { return m.age-p.seen > rememberFor })
		if len(at) == 0 {
			delete(m.others, group)
		}
	}
}
