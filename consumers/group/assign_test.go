package group

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Members come and go at random; after each change the assignment is computed until
// nothing moves. Nobody may have two more partitions than another, all members must
// reach the same answer, and only what must move may move.
func TestAssignmentIsBalancedAndMovesOnlyWhatItMust(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		partitions := 1 + r.IntN(12)
		var members []string
		holders := map[int]string{}
		for change := range 20 {
			if len(members) == 0 || r.IntN(2) == 0 {
				members = append(members, fmt.Sprint("m", change))
			} else {
				i := r.IntN(len(members))
				maps.DeleteFunc(holders, func(_ int, m string) bool { return m == members[i] })
				members = slices.Delete(members, i, i+1)
			}
			if len(members) == 0 {
				continue
			}
			owners := assign(members, holders, partitions)
			least := leastMoves(members, holders, partitions)
			moved := 0
			for p, owner := range owners {
				if !slices.Contains(members, owner) {
					t.Fatalf("partition %d belongs to %q of %v", p, owner, members)
				}
				if holders[p] != "" && holders[p] != owner {
					moved++
				}
			}
			if moved != least {
				t.Fatalf("%d of %v moved to %v of %v; %d must", moved, holders, owners, members, least)
			}
			holders = map[int]string{}
			for p, owner := range owners {
				holders[p] = owner
			}
			if again := assign(members, holders, partitions); !slices.Equal(again, owners) {
				t.Fatalf("%v moved on to %v", owners, again)
			}
			checkBalance(t, members, owners)
		}
	}
}

func checkBalance(t *testing.T, members, owners []string) {
	t.Helper()
	count := map[string]int{}
	for _, m := range members {
		count[m] = 0
	}
	for _, owner := range owners {
		count[owner]++
	}
	all := slices.Sorted(maps.Values(count))
	if all[len(all)-1]-all[0] > 1 {
		t.Fatalf("shares %v", count)
	}
}

// leastMoves is how many partitions are held beyond the largest shares that there are.
func leastMoves(members []string, holders map[int]string, partitions int) int {
	held := map[string]int{}
	for _, m := range holders {
		held[m]++
	}
	counts := []int{}
	for _, m := range members {
		counts = append(counts, held[m])
	}
	slices.SortFunc(counts, func(a, b int) int { return b - a })
	moves := 0
	for i, n := range counts {
		share := partitions / len(members)
		if i < partitions%len(members) {
			share++
		}
		moves += max(0, n-share)
	}
	return moves
}

func TestPartitionsThatDoNotExistConfuseNobody(t *testing.T) {
	owners := assign([]string{"a", "b"}, map[int]string{-1: "a", 99: "b", 0: "nobody", 1: "b"}, 2)
	if !slices.Equal(owners, []string{"a", "b"}) {
		t.Errorf("owners %v", owners)
	}
}
