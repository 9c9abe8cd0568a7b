// ReaderCore reads one ring that an untrusted writer fills, as ABI.md section 4 says. It is the reader of the tests:
// the agent's own is ring2/core_reader.go.
#pragma once

#include <cstdint>
#include <vector>

#include "../src/ring.h"

namespace sonde {

// One record. The payload aliases the ring until it is released; null when aborted.
struct Record {
    uint64_t seq = 0, step = 0, capture_ns = 0;
    uint16_t kind = 0, flags = 0;
    uint32_t layout = 0, rows = 0, bytes = 0;
    const uint8_t *payload = nullptr;
};

class ReaderCore {
public:
    enum class Poll { nothing, record, corrupt };

    ReaderCore(const Ring &ring, uint64_t start);

    Poll poll(Record *record);
    // Gives everything below seq back, as far as that was read and ends at a step boundary.
    void set_release(uint64_t seq);
    bool ready() const;
    void arm() const;
    void disarm() const;
    // Passes over records that a dead writer claimed but never published, and says how many.
    uint64_t skip_lost();
    uint64_t next() const { return next_; }
    uint64_t released() const { return release_; }
    const char *why_corrupt() const { return why_; }
    const Ring &ring() const { return ring_; }

private:
    struct Slot {
        uint64_t pos = 0;
        bool inside = false; // not a step boundary
        bool lost = false;
    };

    Poll corrupt(const char *why);
    const char *check(const ring2_desc &d) const;
    const char *check_payload(const ring2_desc &d) const;
    uint64_t step_end(const uint8_t *payload, uint32_t bytes, uint64_t seq) const;

    Ring ring_;
    uint64_t next_, release_, step_end_;
    uint64_t end_ = 0; // data position after the last record
    bool ended_ = false;
    std::vector<Slot> slots_;
    const char *why_ = nullptr;
};

} // namespace sonde
