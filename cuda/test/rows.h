// The rows of the tests: what stands in byte i of a row follows from its identity alone, so that a reader who is given
// a STEP can tell whether each row belongs to its request and position. The Go side computes the same.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "../sonde.h"

namespace sonde {

inline uint8_t row_byte(uint64_t number, uint32_t position, uint32_t pass, uint32_t entry, uint32_t i) {
    return static_cast<uint8_t>(number * 131 + position * 31 + pass * 7 + entry * 17 + i);
}

// The peers' layout: an entry of 64 f32, one of 3 bytes, and one of 5 i32 for sampled rows only.
struct RowEntry {
    const char *hook;
    int32_t layer;
    uint8_t dtype, select;
    uint32_t dim, row_bytes;
};
inline constexpr RowEntry row_entries[] = {{"resid_post", 2, SONDE_F32, SONDE_SELECT_ALL, 64, 256},
                                           {"odd", -1, SONDE_U8, SONDE_SELECT_ALL, 3, 3},
                                           {"logits", -1, SONDE_I32, SONDE_SELECT_SAMPLED, 5, 20}};
inline constexpr uint32_t row_entry_count = 3;

inline std::vector<sonde_layout_entry> row_layout() {
    std::vector<sonde_layout_entry> out;
    for (const RowEntry &e : row_entries) {
        sonde_layout_entry x{};
        x.hook = e.hook;
        x.layer = e.layer;
        x.dtype = e.dtype;
        x.select = e.select;
        x.dims = 1;
        x.shape[0] = e.dim;
        out.push_back(x);
    }
    return out;
}

// Calls row(position index of the entry's row, range, position) for each row of an entry.
template <class Row>
void each_row(const sonde_range *ranges, uint32_t count, uint32_t layout_index, uint32_t entry, Row row) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++) {
        const sonde_range &r = ranges[i];
        if ((r.layout_mask >> layout_index & 1) == 0) continue;
        if (row_entries[entry].select == SONDE_SELECT_ALL) {
            for (uint32_t k = 0; k < r.count; k++) row(n++, r, r.position + k);
        } else if (r.sampled != 0) {
            row(n++, r, r.position + r.count - 1);
        }
    }
}

inline void fill_rows(uint8_t *span, const sonde_range *ranges, uint32_t count, uint32_t layout_index, uint32_t entry) {
    const uint32_t bytes = row_entries[entry].row_bytes;
    each_row(ranges, count, layout_index, entry, [&](uint32_t n, const sonde_range &r, uint32_t position) {
        for (uint32_t i = 0; i < bytes; i++) span[n * bytes + i] = row_byte(r.number, position, r.pass, entry, i);
    });
}

// Number of the first wrong row, or -1.
inline int32_t wrong_row(const uint8_t *span, const sonde_range *ranges, uint32_t count, uint32_t layout_index,
                         uint32_t entry) {
    int32_t wrong = -1;
    const uint32_t bytes = row_entries[entry].row_bytes;
    each_row(ranges, count, layout_index, entry, [&](uint32_t n, const sonde_range &r, uint32_t position) {
        for (uint32_t i = 0; i < bytes && wrong < 0; i++)
            if (span[n * bytes + i] != row_byte(r.number, position, r.pass, entry, i)) wrong = static_cast<int32_t>(n);
    });
    return wrong;
}

} // namespace sonde
