// Thinning: which tokens of a step are kept, told as ranges, so that the STEP still names every token.

#include <algorithm>

#include "fail.h"

namespace {

using sonde::fail;

// What is being written.
struct Thinned {
    sonde_range *out;
    uint32_t capacity, count;
    uint32_t *rows;
    uint32_t row_capacity, row_count;
    bool full;

    // Appends the tokens [first, end) of a range with these bits.
    void piece(const sonde_range &r, uint32_t first, uint32_t end, uint64_t layout_mask) {
        if (first == end) return;
        if (count == capacity) {
            full = true;
            return;
        }
        sonde_range &p = out[count++];
        p = r;
        p.position = r.position + first;
        p.count = end - first;
        p.layout_mask = layout_mask;
        p.sampled = end == r.count ? r.sampled : uint8_t{0};
    }

    void row(uint32_t index) {
        if (row_count == row_capacity) {
            full = true;
            return;
        }
        rows[row_count++] = index;
    }
};

// Splits one range into runs of kept and of other tokens. first_row: of the range, among all rows.
void thin(Thinned &t, const sonde_range &r, uint32_t stride, uint32_t last_k, uint64_t mask, uint32_t first_row) {
    const uint32_t window = last_k == 0 ? 0 : r.count - std::min(last_k, r.count);
    const auto kept = [&](uint32_t i) { return i >= window && (r.position + i) % stride == 0; };
    for (uint32_t i = 0; i < r.count && !t.full;) {
        const bool keep = kept(i);
        const uint32_t start = i;
        for (; i < r.count && kept(i) == keep; i++)
            if (keep) t.row(first_row + i);
        t.piece(r, start, i, keep ? r.layout_mask : r.layout_mask & ~mask);
    }
}

} // namespace

extern "C" sonde_status sonde_thin_ranges(const sonde_range *ranges, uint32_t count, const sonde_thinning *thinning,
                                          uint64_t mask, sonde_range *out, uint32_t capacity, uint32_t *out_count,
                                          uint32_t *rows, uint32_t row_capacity, uint32_t *row_count) {
    if (thinning == nullptr || out_count == nullptr || row_count == nullptr || (ranges == nullptr && count > 0) ||
        (out == nullptr && capacity > 0) || (rows == nullptr && row_capacity > 0))
        return fail(SONDE_INVALID, "thin ranges: an argument is NULL");
    Thinned t{out, capacity, 0, rows, row_capacity, 0, false};
    uint32_t seen = 0; // rows of ranges with any bit of mask
    for (uint32_t i = 0; i < count && !t.full; i++) {
        if ((ranges[i].layout_mask & mask) == 0) {
            t.piece(ranges[i], 0, ranges[i].count, ranges[i].layout_mask);
            continue;
        }
        thin(t, ranges[i], std::max(1U, thinning->stride), thinning->last_k, mask, seen);
        seen += ranges[i].count;
    }
    *out_count = t.count;
    *row_count = t.row_count;
    if (!t.full) return SONDE_OK;
    return fail(SONDE_FULL, "thin ranges: more than %u ranges or %u rows", capacity, row_capacity);
}
