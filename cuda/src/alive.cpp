#include "alive.h"

#include <algorithm>

namespace sonde {

bool AliveTable::hold(const AliveRecord &record) {
    if (bytes_ + record.payload.size() > max_bytes) return false;
    bytes_ += record.payload.size();
    return true;
}

AlivePointer AliveTable::request(uint64_t number) const {
    const auto found = requests_.find(number);
    return found == requests_.end() ? nullptr : found->second;
}

void AliveTable::end(const AlivePointer &record, uint64_t end_seq) {
    if (record->kind == RING2_KIND_REQUEST_OPEN) requests_.erase(record->number);
    record->end_seq = end_seq;
    ended_.push_back(record);
}

void AliveTable::prune(uint64_t release, uint64_t claim) {
    for (; !ended_.empty() && released(ended_.front()->end_seq, release, claim); ended_.pop_front())
        drop(*ended_.front());
}

template <class Want>
std::vector<AlivePointer> AliveTable::all(Want want, uint64_t claim) const {
    std::vector<AlivePointer> out;
    const auto add = [&](const AlivePointer &r) {
        if (r != nullptr && r->published && want(*r)) out.push_back(r);
    };
    add(model_);
    for (const AlivePointer &r : layouts_) add(r);
    for (const auto &[number, r] : requests_) add(r);
    for (const AlivePointer &r : ended_) add(r);
    std::sort(out.begin(), out.end(),
              [claim](const AlivePointer &a, const AlivePointer &b) { return claim - a->seq > claim - b->seq; });
    return out;
}

std::vector<AlivePointer> AliveTable::snapshot(uint64_t release, uint64_t claim) const {
    return all([=](const AliveRecord &r) { return released(r.seq, release, claim); }, claim);
}

std::vector<AlivePointer> AliveTable::published(uint64_t claim) const {
    return all([](const AliveRecord &) { return true; }, claim);
}

std::vector<AlivePointer> AliveTable::published(uint64_t since, uint64_t claim) const {
    return all([=](const AliveRecord &r) { return claim - r.seq <= claim - since; }, claim);
}

} // namespace sonde
