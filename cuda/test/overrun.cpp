// Planted writes outside of an open span, each of which AddressSanitizer must report: overrun WHAT. It ends with 0 when
// nobody noticed.

#include <cstring>
#include <string>

#include "heap_ring.h"
#include "writer_fixture.h"

using namespace sonde;

namespace {

// Opens a step in a writer's own ring and writes one byte behind an entry.
void behind_entry(uint32_t entry, bool after_commit) {
    const WriterPointer w = open_writer(options_for(""));
    const uint32_t layout = define_rows(w.get());
    open_request(w.get(), 1);
    const sonde_range range = range_at(1, 0, 1);
    CHECK_EQUAL(sonde_begin_step(w.get(), &range, 1, &layout, 1, nullptr, 0, nullptr), SONDE_OK);
    uint64_t bytes = 0;
    auto *span = static_cast<uint8_t *>(sonde_step_span(w.get(), 0, entry, &bytes));
    std::memset(span, 1, bytes);
    if (after_commit) {
        CHECK_EQUAL(sonde_commit_step(w.get()), SONDE_OK);
        span[0] = 2;
    } else {
        span[bytes] = 2;
    }
    CHECK_EQUAL(sonde_writer_close(w.get(), 0), SONDE_OK);
}

// Writes one byte behind the two parts of a ring.
void behind_ring(bool data) {
    HeapRing memory(16, 4096);
    const Ring ring = memory.ring();
    if (data) {
        ring.data[4096] = 1;
    } else {
        memory.ctl()[ctl_bytes(16)] = 1;
    }
}

} // namespace

int main(int argc, char **argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "gap") behind_entry(1, false);  // its rows end in the middle of 64 bytes
    if (what == "span") behind_entry(2, false); // the last entry of the step
    if (what == "late") behind_entry(0, true);
    if (what == "data") behind_ring(true);
    if (what == "ctl") behind_ring(false);
}
