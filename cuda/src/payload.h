// Bytes of control records (ABI.md section 5). A Writer appends to a buffer that keeps its capacity.
#pragma once

#include <cstring>
#include <string_view>
#include <vector>

#include "layout.h"

namespace sonde {

using Bytes = std::vector<uint8_t>;

template <class T>
void put(Bytes &b, T value) {
    const auto *p = reinterpret_cast<const uint8_t *>(&value);
    b.insert(b.end(), p, p + sizeof value);
}

inline void put_text(Bytes &b, std::string_view text) {
    put(b, static_cast<uint16_t>(text.size()));
    b.insert(b.end(), text.begin(), text.end());
}

inline void put_zero(Bytes &b, size_t n) { b.insert(b.end(), n, 0); }

// What became of one layout of a step.
struct StepLayout {
    uint32_t layout = 0;
    uint8_t outcome = 0;
    uint64_t capture_seq = 0;
};

// Rows whose STEP record did not fit.
struct MissingRange {
    uint64_t number = 0;
    uint32_t position = 0, count = 0, pass = 0, layout = 0;
    uint8_t reason = 0;
    uint64_t rows = 0, first_step = 0, last_step = 0;
};

constexpr uint64_t step_bytes(uint64_t layouts, uint64_t ranges) { return 8 + 2 + layouts * 16 + 4 + ranges * 32; }
constexpr uint64_t missing_bytes(uint64_t ranges) { return 4 + ranges * 52; }

// Each replaces the contents of b.
void encode_model(Bytes &b, const sonde_model &model);
void encode_layout(Bytes &b, const Layout &layout);
void encode_request(Bytes &b, const sonde_request &request, uint64_t now_wall_ns);
void encode_end(Bytes &b, const sonde_request_end &end, uint64_t now_wall_ns);
void encode_amend(Bytes &b, uint64_t step, const sonde_amend_range *ranges, uint32_t count);
void encode_step(Bytes &b, uint64_t step, const StepLayout *layouts, uint32_t layout_count, const sonde_range *ranges,
                 uint32_t range_count);
void encode_missing(Bytes &b, const MissingRange *ranges, uint32_t count);

inline std::string_view text_of(const char *text) { return text == nullptr ? std::string_view() : text; }

} // namespace sonde
