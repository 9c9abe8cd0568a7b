// A writer, its layout and its agent in one process, for tests through the C interface.
#pragma once

#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "agent.h"
#include "check.h"
#include "rows.h"
#include "step_parser.h"

namespace sonde {

constexpr uint64_t second = 1000000000;

inline std::string socket_path() {
    static int n = 0;
    return "/tmp/sonde-test-" + std::to_string(getpid()) + "-" + std::to_string(n++);
}

// Without a socket it dials nobody.
inline sonde_writer_options options_for(const std::string &socket) {
    sonde_writer_options o{};
    o.struct_bytes = sizeof o;
    if (!socket.empty()) o.socket = socket.c_str(); // which must outlive the options
    o.engine_instance = "test";
    o.desc_count = 64;
    o.data_bytes = 256U << 10;
    return o;
}

struct Free {
    void operator()(sonde_writer *w) const { sonde_writer_free(w); }
};
using WriterPointer = std::unique_ptr<sonde_writer, Free>;

inline WriterPointer open_writer(const sonde_writer_options &o) {
    sonde_writer *w = nullptr;
    CHECK_EQUAL(sonde_writer_open(&o, &w), SONDE_OK);
    return WriterPointer(w);
}

inline uint32_t define_rows(sonde_writer *w) {
    const std::vector<sonde_layout_entry> entries = row_layout();
    uint32_t layout = 99;
    CHECK_EQUAL(sonde_define_layout(w, entries.data(), row_entry_count, &layout), SONDE_OK);
    return layout;
}

inline void open_request(sonde_writer *w, uint64_t number) {
    sonde_request r{};
    r.number = number;
    r.external_id = "r";
    CHECK_EQUAL(sonde_open_request(w, &r), SONDE_OK);
}

inline void end_request(sonde_writer *w, uint64_t number) {
    sonde_request_end e{};
    e.number = number;
    CHECK_EQUAL(sonde_end_request(w, &e), SONDE_OK);
}

inline sonde_range range_at(uint64_t number, uint32_t position, uint32_t count) {
    return {number, position, count, 0, SONDE_DECODE, 1, 0, 1};
}

// One step of one range; what becomes of its capture.
inline uint32_t write_step(sonde_writer *w, uint32_t layout, const sonde_range &range) {
    CHECK_EQUAL(sonde_begin_step(w, &range, 1, &layout, 1, nullptr, 0, nullptr), SONDE_OK);
    const uint32_t outcome = sonde_step_outcome(w, 0);
    for (uint32_t e = 0; e < row_entry_count; e++) {
        uint64_t bytes = 0;
        auto *span = static_cast<uint8_t *>(sonde_step_span(w, 0, e, &bytes));
        CHECK((span != nullptr) == (outcome == SONDE_CAPTURED));
        if (span == nullptr) continue;
        CHECK_EQUAL(bytes, uint64_t{sonde_step_rows(w, 0, e)} * row_entries[e].row_bytes);
        fill_rows(span, &range, 1, 0, e);
    }
    CHECK_EQUAL(sonde_commit_step(w), SONDE_OK);
    return outcome;
}

inline sonde_stats stats_of(sonde_writer *w) {
    sonde_stats s{};
    CHECK_EQUAL(sonde_writer_stats(w, &s), SONDE_OK);
    return s;
}

// What an agent reads until nothing comes for a while, checked row by row.
struct Seen {
    std::vector<uint16_t> kinds;
    uint64_t rows = 0, aborted = 0, last_step = 0, missing_rows = 0;
};

inline void look_at(const Record &r, ParsedStep *step, Seen *seen) {
    seen->kinds.push_back(r.kind);
    if (r.kind == RING2_KIND_STEP) {
        CHECK(parse_step(r.payload, r.bytes, step));
        seen->last_step = step->step;
    } else if (r.kind == RING2_KIND_MISSING) {
        BodyReader b(r.payload, r.bytes);
        for (uint32_t n = b.take<uint32_t>(); n > 0; n--) {
            for (int skipped = 0; skipped < 28; skipped++) b.take<uint8_t>();
            seen->missing_rows += b.take<uint64_t>();
            b.take<uint64_t>();
            b.take<uint64_t>();
        }
        CHECK(b.done());
    } else if (r.kind == RING2_KIND_CAPTURE) {
        if (r.payload == nullptr) {
            seen->aborted++;
        } else {
            seen->rows += check_capture(r, *step);
        }
    }
}

inline Agent::Next drain(Agent &agent, Seen *seen, int quiet_ms) {
    ParsedStep step;
    Record r;
    for (;;) {
        const Agent::Next next = agent.next(&r, quiet_ms);
        if (next != Agent::Next::record) return next;
        look_at(r, &step, seen);
        agent.release(r.seq + 1);
    }
}

} // namespace sonde
