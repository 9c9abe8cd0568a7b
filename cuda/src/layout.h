// What a capture holds, as the writer keeps it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../sonde.h"

namespace sonde {

struct LayoutEntry {
    std::string hook;
    int32_t layer = -1;
    uint8_t dtype = 0, select = 0;
    bool ragged = false;
    std::vector<uint32_t> shape;
    uint16_t shard = 0, shard_count = 1;
    uint64_t row_bytes = 0; // of a ragged entry: bytes of one unit
};

struct Layout {
    uint32_t id = 0;
    std::vector<LayoutEntry> entries;
    bool ragged = false; // any entry is
};

// Ranges of a layout, by the bits of its index in the step.
uint64_t selected_rows(const sonde_range *ranges, uint32_t count, uint32_t layout_index, uint8_t select);

} // namespace sonde
