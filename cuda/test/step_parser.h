// Reads STEP payloads and checks the rows of the captures that they announce.
#pragma once

#include <vector>

#include "../src/message.h"
#include "check.h"
#include "reader.h"
#include "rows.h"

namespace sonde {

struct ParsedStep {
    uint64_t step = 0;
    std::vector<StepLayout> layouts;
    std::vector<sonde_range> ranges;
};

inline bool parse_step(const uint8_t *payload, uint32_t bytes, ParsedStep *out) {
    BodyReader b(payload, bytes);
    out->step = b.take<uint64_t>();
    out->layouts.resize(b.take<uint16_t>());
    for (StepLayout &l : out->layouts) {
        l.layout = b.take<uint32_t>();
        l.outcome = b.take<uint8_t>();
        b.zero(3);
        l.capture_seq = b.take<uint64_t>();
    }
    out->ranges.resize(b.take<uint32_t>() % (SONDE_MAX_STEP_RANGES + 1));
    for (sonde_range &r : out->ranges) {
        r.number = b.take<uint64_t>();
        r.position = b.take<uint32_t>();
        r.count = b.take<uint32_t>();
        r.pass = b.take<uint32_t>();
        r.phase = b.take<uint8_t>();
        r.sampled = b.take<uint8_t>();
        r.reserved = b.take<uint16_t>();
        r.layout_mask = b.take<uint64_t>();
    }
    return b.done();
}

// Checks every row of a capture of the peers' layout and returns how many ledger rows it has.
inline uint64_t check_capture(const Record &capture, const ParsedStep &step) {
    uint32_t index = 0;
    while (index < step.layouts.size() && step.layouts[index].capture_seq != capture.seq) index++;
    CHECK(index < step.layouts.size() && capture.step == step.step);
    const auto count = static_cast<uint32_t>(step.ranges.size());
    uint64_t at = 0, rows = 0;
    for (uint32_t e = 0; e < row_entry_count; e++) {
        uint32_t n = 0;
        each_row(step.ranges.data(), count, index, e, [&](uint32_t, const sonde_range &, uint32_t) { n++; });
        CHECK(at + n * row_entries[e].row_bytes <= capture.bytes);
        CHECK_EQUAL(wrong_row(capture.payload + at, step.ranges.data(), count, index, e), -1);
        at += align_up(uint64_t{n} * row_entries[e].row_bytes);
        rows += n;
    }
    return rows;
}

} // namespace sonde
