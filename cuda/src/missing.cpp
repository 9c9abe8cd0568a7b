#include "missing.h"

#include <algorithm>

namespace sonde {

namespace {

bool same_kind(const MissingRange &a, const MissingRange &b) {
    return a.number == b.number && a.layout == b.layout && a.pass == b.pass && a.reason == b.reason;
}

void merge(MissingRange &into, const MissingRange &r) {
    const uint32_t end = std::max(into.position + into.count, r.position + r.count);
    into.position = std::min(into.position, r.position);
    into.count = end - into.position;
    into.rows += r.rows;
    into.first_step = std::min(into.first_step, r.first_step);
    into.last_step = std::max(into.last_step, r.last_step);
}

uint64_t ledger_rows(const Plan &plan, const sonde_range &range) {
    uint64_t rows = 0;
    for (const LayoutEntry &e : plan.layout->entries) {
        if (e.select == SONDE_SELECT_ALL) {
            rows += range.count;
        } else if (range.sampled != 0) {
            rows++;
        }
    }
    return rows;
}

} // namespace

MissingSet::MissingSet() : last_(buckets, -1) { ranges_.reserve(bound); }

int32_t &MissingSet::last_of(const MissingRange &range) {
    uint64_t h = range.number * 0x9e3779b97f4a7c15U ^ (uint64_t{range.layout} << 32 | range.pass) ^ range.reason;
    h ^= h >> 29;
    h *= 0xbf58476d1ce4e5b9U;
    h ^= h >> 32;
    for (size_t i = h % buckets;; i = (i + 1) % buckets) {
        if (last_[i] < 0 || same_kind(ranges_[static_cast<size_t>(last_[i])], range)) return last_[i];
    }
}

void MissingSet::add(const MissingRange &range) {
    int32_t &last = last_of(range);
    if (last >= 0) {
        MissingRange &before = ranges_[static_cast<size_t>(last)];
        if (before.position + before.count == range.position || ranges_.size() == bound) {
            merge(before, range);
            return;
        }
    }
    if (ranges_.size() == bound) {
        unnamed_ += range.rows;
        return;
    }
    last = static_cast<int32_t>(ranges_.size());
    ranges_.push_back(range);
}

void MissingSet::add_step(const sonde_range *ranges, uint32_t range_count, const Plan *plans, uint32_t plan_count,
                          uint64_t step, uint8_t reason) {
    for (uint32_t i = 0; i < plan_count; i++) {
        for (uint32_t j = 0; j < range_count; j++) {
            const sonde_range &r = ranges[j];
            if ((r.layout_mask >> i & 1) == 0) continue;
            add(MissingRange{r.number, r.position, r.count, r.pass, plans[i].layout->id, reason,
                             ledger_rows(plans[i], r), step, step});
        }
    }
}

void MissingSet::forget(size_t n) {
    ranges_.erase(ranges_.begin(), ranges_.begin() + static_cast<std::ptrdiff_t>(n));
    std::fill(last_.begin(), last_.end(), -1);
    for (size_t i = 0; i < ranges_.size(); i++) last_of(ranges_[i]) = static_cast<int32_t>(i);
}

} // namespace sonde
