// Typed access to the two memories of a ring. They may be mappings or, in tests, plain heap memory, which the
// sanitizers can see.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "../../ring2/ring2_abi.h"

namespace sonde {

static_assert(std::endian::native == std::endian::little, "the ring is little-endian, and so is this code");

// CRC32C (Castagnoli) of bytes, as ABI.md defines it. before: that of the bytes in front of them.
uint32_t crc32c(const void *data, size_t bytes, uint32_t before = 0);

constexpr uint64_t align_up(uint64_t n) { return (n + RING2_PAYLOAD_ALIGN - 1) & ~uint64_t{RING2_PAYLOAD_ALIGN - 1}; }

// A word that both processes touch. Every access names the line in the other process that it pairs with.
template <class T>
std::atomic_ref<T> shared(T &word) {
    return std::atomic_ref<T>(word);
}

constexpr uint64_t ctl_bytes(uint64_t desc_count) { return RING2_DESC_OFF + desc_count * sizeof(ring2_desc); }

struct Ring {
    ring2_config *config = nullptr;
    ring2_producer *producer = nullptr;
    ring2_consumer *consumer = nullptr;
    ring2_desc *descs = nullptr;
    uint8_t *data = nullptr;
    uint64_t mask = 0;      // of descs
    uint64_t data_mask = 0; // of data

    Ring() = default;
    // Lays a ring over memory. The consumer zone is separate because a reader maps nothing else writable. Both counts
    // are powers of two, and ctl has ctl_bytes(desc_count): the caller has checked that.
    Ring(uint8_t *ctl, uint8_t *consumer_zone, uint8_t *data_bytes_at, uint64_t desc_count, uint64_t data_bytes);

    uint64_t desc_count() const { return mask + 1; }
    uint64_t data_bytes() const { return data_mask + 1; }
    ring2_desc &desc(uint64_t seq) const { return descs[seq & mask]; }
    uint8_t *span(uint64_t pos) const { return data + (pos & data_mask); }
};

uint32_t checksum(const ring2_desc &desc);
uint32_t checksum(const ring2_config &config);

// Writes zone 0, magic last: a peer that sees it sees the rest. Fills in the constants of the ABI and the checksum.
void init_config(const Ring &ring, ring2_config config);

// Checks the config zone of an untrusted peer against the memory that came with it, on a copy. nullptr: it is good;
// else one sentence.
const char *check_config(const uint8_t *ctl, uint64_t ctl_size, uint64_t data_size, ring2_config *copy);

uint64_t monotonic_ns();
uint64_t wall_ns();
void sleep_ns(uint64_t ns);

} // namespace sonde
