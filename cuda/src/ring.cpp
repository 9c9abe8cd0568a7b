#include "ring.h"

#include <array>
#include <cstring>
#include <ctime>

namespace sonde {

namespace {

constexpr std::array<uint32_t, 256> make_crc_table() {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++) c = (c >> 1) ^ (0x82f63b78U & (0U - (c & 1)));
        table[i] = c;
    }
    return table;
}

constexpr std::array<uint32_t, 256> crc_table = make_crc_table();

uint32_t crc_by_table(uint32_t c, const uint8_t *p, size_t n) {
    for (; n > 0; n--, p++) c = (c >> 8) ^ crc_table[(c ^ *p) & 0xff];
    return c;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t crc_by_instruction(uint32_t c, const uint8_t *p, size_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t v;
        std::memcpy(&v, p, 8);
        c = static_cast<uint32_t>(__builtin_ia32_crc32di(c, v));
    }
    for (; n > 0; n--, p++) c = __builtin_ia32_crc32qi(c, *p);
    return c;
}

using CrcFunction = uint32_t (*)(uint32_t, const uint8_t *, size_t);
const CrcFunction crc = __builtin_cpu_supports("sse4.2") ? crc_by_instruction : crc_by_table;
#else
constexpr auto crc = crc_by_table;
#endif

uint64_t clock_ns(clockid_t clock) {
    timespec t{};
    clock_gettime(clock, &t); // cannot fail for these clocks
    return static_cast<uint64_t>(t.tv_sec) * 1000000000U + static_cast<uint64_t>(t.tv_nsec);
}

} // namespace

uint32_t crc32c(const void *data, size_t bytes, uint32_t before) {
    return ~crc(~before, static_cast<const uint8_t *>(data), bytes);
}

Ring::Ring(uint8_t *ctl, uint8_t *consumer_zone, uint8_t *data_bytes_at, uint64_t desc_count, uint64_t data_bytes)
    : config(reinterpret_cast<ring2_config *>(ctl + RING2_CONFIG_OFF)),
      producer(reinterpret_cast<ring2_producer *>(ctl + RING2_PRODUCER_OFF)),
      consumer(reinterpret_cast<ring2_consumer *>(consumer_zone)),
      descs(reinterpret_cast<ring2_desc *>(ctl + RING2_DESC_OFF)),
      data(data_bytes_at),
      mask(desc_count - 1),
      data_mask(data_bytes - 1) {}

uint32_t checksum(const ring2_desc &desc) {
    return crc32c(&desc.seq, offsetof(ring2_desc, crc32c) - offsetof(ring2_desc, seq));
}

uint32_t checksum(const ring2_config &config) {
    return crc32c(&config.abi_major, offsetof(ring2_config, crc32c) - offsetof(ring2_config, abi_major));
}

void init_config(const Ring &ring, ring2_config config) {
    config.magic = 0;
    config.abi_major = RING2_ABI_MAJOR;
    config.abi_minor = RING2_ABI_MINOR;
    config.header_bytes = sizeof(ring2_config);
    config.desc_bytes = sizeof(ring2_desc);
    config.desc_off = RING2_DESC_OFF;
    config.crc32c = checksum(config);
    *ring.config = config;
    // Pairs with the agent's acquire load of magic in parseConfig (ring2/ring.go).
    shared(ring.config->magic).store(RING2_MAGIC, std::memory_order_release);
}

const char *check_config(const uint8_t *ctl, uint64_t ctl_size, uint64_t data_size, ring2_config *copy) {
    if (ctl_size < RING2_DESC_OFF) return "ctl is too small for a ring";
    // The mapping is read-only and the peer writes once, before it connects: a plain copy is what is checked.
    std::memcpy(copy, ctl, sizeof *copy);
    const auto power_of_two = [](uint64_t n) { return std::has_single_bit(n); };
    if (copy->magic != RING2_MAGIC) return "config has no magic";
    if (copy->abi_major != RING2_ABI_MAJOR) return "the engine speaks another major version of the ring ABI";
    if (copy->crc32c != checksum(*copy)) return "config has a wrong checksum";
    if (copy->header_bytes != sizeof(ring2_config) || copy->desc_bytes != sizeof(ring2_desc) ||
        copy->desc_off != RING2_DESC_OFF)
        return "config has other sizes than this version";
    if (!power_of_two(copy->desc_count) || copy->desc_count > 1U << 20 || ctl_bytes(copy->desc_count) > ctl_size)
        return "config has a number of descriptors that does not fit";
    if (!power_of_two(copy->data_bytes) || copy->data_bytes != data_size) return "config has another size of data";
    if (copy->reserve_descs >= copy->desc_count || copy->reserve_bytes >= copy->data_bytes)
        return "the reserve leaves nothing";
    if (copy->rank >= copy->rank_count || copy->rank_count > 1U << 16 || copy->mode > 1 || copy->epoch == 0)
        return "config has an impossible rank, mode or epoch";
    if (copy->engine_instance[sizeof copy->engine_instance - 1] != 0) return "engine instance is not terminated";
    return nullptr;
}

uint64_t monotonic_ns() { return clock_ns(CLOCK_MONOTONIC); }
uint64_t wall_ns() { return clock_ns(CLOCK_REALTIME); }

void sleep_ns(uint64_t ns) {
    const timespec t{static_cast<time_t>(ns / 1000000000U), static_cast<long>(ns % 1000000000U)};
    nanosleep(&t, nullptr); // an interrupted nap is a shorter one
}

} // namespace sonde
