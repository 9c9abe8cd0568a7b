package group

import (
	"cmp"
	"maps"
	"slices"
)

// view is the living members, the oldest first, and who holds each partition: the
// member with the highest token, or who is about to, and the oldest of several.
func (m *Member) view() (members []string, holders map[int]string) {
	all := []heartbeat{m.heartbeat()}
	for _, p := range m.peers {
		all = append(all, p.heartbeat)
	}
	slices.SortFunc(all, func(a, b heartbeat) int {
		return cmp.Or(cmp.Compare(a.Since, b.Since), cmp.Compare(a.Member, b.Member))
	})
	holders = map[int]string{}
	tokens := map[int]uint64{}
	for _, h := range all {
		members = append(members, h.Member)
		for partition, token := range h.Held {
			if _, held := holders[partition]; !held || token > tokens[partition] {
				holders[partition], tokens[partition] = h.Member, token
			}
		}
	}
	for _, h := range all {
		for _, partition := range h.Wanted {
			if _, held := holders[partition]; !held {
				holders[partition] = h.Member
			}
		}
	}
	return members, holders
}

// elsewhere reports whether another member holds a partition or is about to.
func (m *Member) elsewhere(partition int) bool {
	for _, p := range m.peers {
		if _, held := p.Held[partition]; held || slices.Contains(p.Wanted, partition) {
			return true
		}
	}
	return false
}

// assign gives each partition an owner. Each member gets its equal share; where that
// leaves a rest, those get one more that hold most. A member keeps what it holds up
// to its share, so that nothing moves that need not. The answer follows from the
// arguments alone, so that all members reach the same one.
func assign(members []string, holders map[int]string, partitions int) (owners []string) {
	owners = make([]string, partitions)
	held := map[string]int{}
	for partition, member := range holders {
		if partition >= 0 && partition < partitions {
			held[member]++
		}
	}
	share := map[string]int{}
	rest := partitions % len(members)
	byHeld := slices.Clone(members)
	slices.SortStableFunc(byHeld, func(a, b string) int { return cmp.Compare(held[b], held[a]) })
	for i, member := range byHeld {
		share[member] = partitions / len(members)
		if i < rest {
			share[member]++
		}
	}
	for _, partition := range slices.Sorted(maps.Keys(holders)) {
		if member := holders[partition]; partition >= 0 && partition < partitions && share[member] > 0 {
			owners[partition] = member
			share[member]--
		}
	}
	next := 0
	for partition := range owners {
		if owners[partition] != "" {
			continue
		}
		for share[members[next]] == 0 {
			next++
		}
		owners[partition] = members[next]
		share[members[next]]--
	}
	return owners
}
