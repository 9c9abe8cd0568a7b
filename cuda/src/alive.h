// Control records that still mean something to an agent that attaches later: models, layouts, open requests.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "payload.h"
#include "ring.h"

namespace sonde {

struct AliveRecord {
    uint16_t kind = 0;
    Bytes payload;
    uint64_t number = 0;  // of a request
    uint64_t ordinal = 0; // in the journal
    uint64_t seq = 0;
    bool published = false;
    uint64_t end_seq = 0; // of the record that ends it, once that is in the ring
    bool end_pending = false;
};

// Says whether release has passed a sequence number that was claimed. Both lie less than 2^63 behind claim.
inline bool released(uint64_t seq, uint64_t release, uint64_t claim) { return claim - seq > claim - release; }

// The payload of a record never changes: a snapshot shares it.
using AlivePointer = std::shared_ptr<AliveRecord>;

// Knows what a snapshot must say. A record is dropped from it when the record that ends it was released. Its owner
// holds the writer's lock.
class AliveTable {
public:
    static constexpr uint64_t max_bytes = 64U << 20; // of payloads; what a snapshot may hold

    // Counts a record that begins to live. false: the bound is reached.
    bool hold(const AliveRecord &record);
    void drop(const AliveRecord &record) { bytes_ -= record.payload.size(); }
    void set_model(const AlivePointer &model) { model_ = model; }
    const AlivePointer &model() const { return model_; }
    void add_layout(const AlivePointer &layout) { layouts_.push_back(layout); }
    void add_request(const AlivePointer &request) { requests_[request->number] = request; }
    void remove_request(uint64_t number) { requests_.erase(number); }
    AlivePointer request(uint64_t number) const;
    size_t open_requests() const { return requests_.size(); }
    // Notes the record that ends one. prune forgets it once that is released.
    void end(const AlivePointer &record, uint64_t end_seq);
    void prune(uint64_t release, uint64_t claim);
    // Lists, in the order of the ring, what a reader that starts at release cannot see in the ring.
    std::vector<AlivePointer> snapshot(uint64_t release, uint64_t claim) const;
    // Lists, in the order of the ring, the published records that still mean something and have seq in [since, claim).
    std::vector<AlivePointer> published(uint64_t since, uint64_t claim) const;
    std::vector<AlivePointer> published(uint64_t claim) const;
    uint64_t bytes() const { return bytes_; }

private:
    template <class Want>
    std::vector<AlivePointer> all(Want want, uint64_t claim) const;

    AlivePointer model_;
    std::vector<AlivePointer> layouts_;
    std::unordered_map<uint64_t, AlivePointer> requests_;
    std::deque<AlivePointer> ended_; // in the order of end_seq
    uint64_t bytes_ = 0;             // payloads of all of the above
};

} // namespace sonde
