// Writer, reader and late copies as threads on ONE mapping, where ThreadSanitizer sees a missing ordering. It is blind
// across processes and across two mappings of one memory.

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "../src/writer.h"
#include "check.h"
#include "reader.h"
#include "rows.h"
#include "step_parser.h"

using namespace sonde;

namespace {

constexpr uint32_t steps = 4000;

// Captures that the copying thread must complete.
struct Copies {
    struct One {
        sonde_pending *pending;
        sonde_range range;
    };
    std::mutex lock;
    std::deque<One> queue;
    std::atomic<bool> done{false};

    void push(One one) {
        const std::lock_guard<std::mutex> hold(lock);
        queue.push_back(one);
    }
    bool pop(One *one) {
        const std::lock_guard<std::mutex> hold(lock);
        if (queue.empty()) return false;
        *one = queue.front();
        queue.pop_front();
        return true;
    }
};

void complete_copies(Copies &copies) {
    for (Copies::One one{}; !copies.done || !copies.queue.empty();) {
        if (!copies.pop(&one)) {
            std::this_thread::yield();
            continue;
        }
        for (uint32_t e = 0; e < row_entry_count; e++)
            fill_rows(static_cast<uint8_t *>(sonde_pending_span(one.pending, e, nullptr)), &one.range, 1, 0, e);
        sonde_pending_commit(one.pending);
    }
}

void write_all(sonde_writer *w, uint32_t layout, Copies &copies) {
    for (uint32_t i = 0; i < steps; i++) {
        const sonde_range range{1, i, 1 + i % 3, 0, SONDE_DECODE, 1, 0, 1};
        CHECK_EQUAL(sonde_begin_step(w, &range, 1, &layout, 1, nullptr, 0, nullptr), SONDE_OK);
        sonde_pending *pending = nullptr;
        if (i % 4 == 0) CHECK_EQUAL(sonde_step_detach(w, 0, &pending), SONDE_OK);
        if (pending != nullptr) copies.push({pending, range});
        for (uint32_t e = 0; pending == nullptr && e < row_entry_count; e++) {
            auto *span = static_cast<uint8_t *>(sonde_step_span(w, 0, e, nullptr));
            if (span != nullptr) fill_rows(span, &range, 1, 0, e);
        }
        CHECK_EQUAL(sonde_commit_step(w), SONDE_OK);
    }
    copies.done = true;
}

// Reads until the BYE and returns the rows. It asks to be woken after 64 empty polls, as an agent does: the handshake
// orders the threads as well, and if it came each time it would hide a missing ordering of the commit word.
uint64_t read_all(const sonde_writer *w) {
    ReaderCore reader(w->ring(), 0);
    ParsedStep step;
    uint64_t rows = 0, empty = 0;
    for (Record r; r.kind != RING2_KIND_BYE;) {
        if (reader.poll(&r) == ReaderCore::Poll::nothing) {
            const bool wait = ++empty % 64 == 0;
            if (wait) reader.arm();
            if (!wait || !reader.ready()) std::this_thread::yield();
            if (wait) reader.disarm();
            continue;
        }
        CHECK(reader.why_corrupt() == nullptr);
        if (r.kind == RING2_KIND_STEP) CHECK(parse_step(r.payload, r.bytes, &step));
        if (r.kind == RING2_KIND_CAPTURE) rows += check_capture(r, step);
        reader.set_release(reader.next());
    }
    return rows;
}

void threads_on_one_mapping_see_whole_rows() {
    sonde_writer_options o{};
    o.struct_bytes = sizeof o;
    o.desc_count = 64;
    o.data_bytes = 256U << 10;
    sonde_writer *w = nullptr;
    CHECK_EQUAL(sonde_writer_open(&o, &w), SONDE_OK);
    const std::vector<sonde_layout_entry> entries = row_layout();
    uint32_t layout = 0;
    CHECK_EQUAL(sonde_define_layout(w, entries.data(), row_entry_count, &layout), SONDE_OK);
    Copies copies;
    uint64_t rows = 0;
    std::thread reading([&] { rows = read_all(w); });
    std::thread copying([&] { complete_copies(copies); });
    std::thread looking([&] {
        for (sonde_stats s{}; !copies.done; std::this_thread::yield()) CHECK_EQUAL(sonde_writer_stats(w, &s), SONDE_OK);
    });
    write_all(w, layout, copies);
    copying.join();
    looking.join();
    sonde_stats s{};
    // Without a socket a close does not wait for room, so it waits here until the BYE fits.
    do CHECK_EQUAL(sonde_writer_stats(w, &s), SONDE_OK);
    while (s.release != s.claim || s.pending_control > 0);
    CHECK_EQUAL(sonde_writer_close(w, 0), SONDE_OK);
    reading.join();
    uint64_t dropped = 0;
    for (const uint64_t n : s.dropped_rows) dropped += n;
    CHECK(rows > 0);
    CHECK_EQUAL(s.captured_rows, rows + dropped);
    CHECK_EQUAL(s.refused_releases, 0);
    sonde_writer_free(w);
}

} // namespace

int main() {
    std::printf("threads_test\n");
    RUN(threads_on_one_mapping_see_whole_rows);
}
