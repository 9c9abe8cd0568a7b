package bus

import (
	"fmt"
	"strings"
)

// MaxPartitions bounds the partitions of a stream.
const MaxPartitions = 256

// The constants of FNV-1a of 64 bits.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// PartitionOf is where a message to a subject is stored. All messages of one rank
// stand in one partition, so that each chain keeps its order. It is the same for
// every broker and in every language: FNV-1a of 64 bits over the tokens of engine and
// rank with the dot between them, modulo the number of partitions; tokens that a
// subject lacks are empty. schema/SCHEMA.md has examples.
func PartitionOf(subject string, partitions int) int {
	if partitions <= 1 {
		return 0
	}
	rest := subject
	for range 3 { // sonde, the version, the tenant
		_, rest, _ = strings.Cut(rest, ".")
	}
	engine, rest, _ := strings.Cut(rest, ".")
	rank, _, _ := strings.Cut(rest, ".")
	h := uint64(fnvOffset)
	for _, part := range [...]string{engine, ".", rank} {
		for i := range len(part) {
			h = (h ^ uint64(part[i])) * fnvPrime
		}
	}
	return int(h % uint64(partitions))
}

// checkPartition says that a partition does not exist.
func checkPartition(stream string, partition, partitions int) error {
	if partition < 0 || partition >= partitions {
		return fmt.Errorf("stream %s has no partition %d; it has %d, counted from 0", stream, partition, partitions)
	}
	return nil
}

// CheckBroadcast says why something cannot be broadcast, or listened to: no valid
// subject, one of the stream, too many bytes.
func CheckBroadcast(subject string, data []byte) error {
	switch {
	case !ValidSubject(subject):
		return fmt.Errorf("broadcast on %q: that is no subject", subject)
	case Match(Subjects, subject):
		return fmt.Errorf("broadcast on %q: it belongs to the stream", subject)
	case len(data) > MaxBroadcastBytes:
		return fmt.Errorf("broadcast %d bytes on %s; at most %d", len(data), subject, MaxBroadcastBytes)
	}
	return nil
}
