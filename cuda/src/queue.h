// Control records that wait for room in the ring.
#pragma once

#include <deque>

#include "alive.h"
#include "missing.h"

namespace sonde {

// A control record on its way into the ring.
struct Control {
    uint16_t kind = 0;
    uint64_t step = 0;
    Bytes payload;
    AlivePointer alive;   // what opens or ends with it, else null
    uint64_t ordinal = 0; // in the journal
};

// Keeps what did not even fit into the reserve, in an order that keeps every reference behind what it refers to:
// openings, then the rows that are missing, then amendments and ends.
struct ControlQueue {
    static constexpr size_t max_records = 8192;
    static constexpr uint64_t max_bytes = 8U << 20;
    static constexpr size_t missing_per_record = 256; // ranges of one MISSING record

    std::deque<Control> opens, ends;
    uint64_t bytes = 0;
    MissingSet missing;
    uint64_t lost = 0; // records refused

    bool empty() const { return opens.empty() && ends.empty() && missing.ranges().empty(); }
    uint64_t records() const { return opens.size() + ends.size() + missing.ranges().size(); }

    // false: a bound is reached; the record is lost and counted.
    bool push(Control &&record) {
        if (opens.size() + ends.size() >= max_records || bytes + record.payload.size() > max_bytes) {
            lost++;
            return false;
        }
        bytes += record.payload.size();
        const bool late = record.kind == RING2_KIND_AMEND || record.kind == RING2_KIND_REQUEST_END;
        (late ? ends : opens).push_back(std::move(record));
        return true;
    }
};

} // namespace sonde
