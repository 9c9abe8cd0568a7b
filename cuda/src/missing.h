// Rows of steps whose STEP record did not fit, until a MISSING record names them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core.h"
#include "payload.h"

namespace sonde {

// Beyond the bound, ranges of one request, layout, pass and reason are merged into their hull, and what cannot be
// merged is only counted. It allocates at its construction only.
class MissingSet {
public:
    static constexpr size_t bound = 4096;

    MissingSet();
    // Names every row of a step that could not be put into the ring.
    void add_step(const sonde_range *ranges, uint32_t range_count, const Plan *plans, uint32_t plan_count,
                  uint64_t step, uint8_t reason);
    // Drops the first n ranges, which were named.
    void forget(size_t n);
    const std::vector<MissingRange> &ranges() const { return ranges_; }
    uint64_t unnamed() const { return unnamed_; } // rows

private:
    static constexpr size_t buckets = 4 * bound;

    void add(const MissingRange &range);
    int32_t &last_of(const MissingRange &range);

    std::vector<MissingRange> ranges_;
    // Open addressing: index of the last range of each kind, -1 for none. Entries leave only by forget, which rebuilds.
    std::vector<int32_t> last_;
    uint64_t unnamed_ = 0;
};

} // namespace sonde
