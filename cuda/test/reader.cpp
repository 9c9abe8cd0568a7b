#include "reader.h"

#include <cstring>

namespace sonde {

namespace {

constexpr uint32_t max_control_record = 1U << 18;

// A build that proves that ThreadSanitizer would see a missing ordering reads the commit word without one.
#if defined(SONDE_PLANTED_RELAXED_POLL)
constexpr auto poll_order = std::memory_order_relaxed;
#else
constexpr auto poll_order = std::memory_order_acquire;
#endif

bool signed_before(uint64_t a, uint64_t b) { return static_cast<int64_t>(a - b) < 0; }

} // namespace

ReaderCore::ReaderCore(const Ring &ring, uint64_t start)
    : ring_(ring), next_(start), release_(start), step_end_(start), slots_(ring.desc_count()) {}

ReaderCore::Poll ReaderCore::corrupt(const char *why) {
    why_ = why;
    return Poll::corrupt;
}

ReaderCore::Poll ReaderCore::poll(Record *record) {
    if (why_ != nullptr) return Poll::corrupt;
    if (next_ - release_ >= ring_.desc_count()) return Poll::nothing;
    ring2_desc &shared_desc = ring_.desc(next_);
    // Pairs with the release store in WriterCore::publish and in publish of ring2/core_writer.go.
    const uint64_t commit = shared(shared_desc.commit).load(poll_order);
    if (commit != next_ + 1) {
        const bool before = commit == next_ + 1 - ring_.desc_count() || (commit == 0 && next_ < ring_.desc_count());
        return before ? Poll::nothing : corrupt("a commit word is neither of this lap nor of the one before");
    }
    ring2_desc d{};
    // Copied once; only the copy is checked and used. The commit word is not read again.
    std::memcpy(&d.seq, &shared_desc.seq, sizeof d - offsetof(ring2_desc, seq));
    if (const char *why = check(d); why != nullptr) return corrupt(why);
    if (const char *why = check_payload(d); why != nullptr) return corrupt(why);
    *record = Record{d.seq, d.step, d.capture_ns, d.kind, d.flags, d.layout, d.rows, d.data_len, nullptr};
    if ((d.flags & RING2_FLAG_ABORTED) == 0) record->payload = ring_.span(d.data_pos);
    if (d.kind == RING2_KIND_STEP && record->payload != nullptr)
        step_end_ = step_end(record->payload, d.data_len, d.seq);
    slots_[next_ & ring_.mask] = Slot{d.data_pos, d.kind == RING2_KIND_CAPTURE, false};
    end_ = d.data_pos + align_up(d.data_len);
    ended_ = true;
    next_++;
    return Poll::record;
}

const char *ReaderCore::check(const ring2_desc &d) const {
    const uint64_t size = align_up(d.data_len);
    if (d.crc32c != checksum(d)) return "a descriptor has a wrong checksum";
    if (d.seq != next_) return "a descriptor names another record";
    if (d.data_pos % RING2_PAYLOAD_ALIGN != 0 || (d.data_pos & ring_.data_mask) + size > ring_.data_bytes())
        return "a payload crosses the end of the data";
    if (ended_ && signed_before(d.data_pos, end_)) return "a payload lies before the end of the last one";
    if (d.kind != RING2_KIND_CAPTURE && d.data_len > max_control_record) return "a control record is too long";
    for (uint64_t seq = release_; seq != next_; seq++) {
        const Slot &s = slots_[seq & ring_.mask];
        if (s.lost) continue;
        return d.data_pos + size - s.pos > ring_.data_bytes() ? "a payload overlaps one that was not released"
                                                              : nullptr;
    }
    return nullptr;
}

const char *ReaderCore::check_payload(const ring2_desc &d) const {
    if ((d.flags & RING2_FLAG_PAYLOAD_CRC) == 0)
        return d.kind == RING2_KIND_CAPTURE || d.kind > RING2_KIND_BYE ? nullptr : "a control record has no checksum";
    if ((d.flags & RING2_FLAG_ABORTED) != 0) return nullptr;
    return crc32c(ring_.span(d.data_pos), d.data_len) == d.payload_crc32c ? nullptr : "a payload has a wrong checksum";
}

// Sequence number after the last capture that a STEP announces.
uint64_t ReaderCore::step_end(const uint8_t *payload, uint32_t bytes, uint64_t seq) const {
    uint64_t end = seq + 1;
    uint16_t layouts = 0;
    if (bytes < 10) return end;
    std::memcpy(&layouts, payload + 8, sizeof layouts);
    for (uint32_t i = 0; i < layouts && 10 + 16 * (i + 1) <= bytes; i++) {
        uint64_t capture = 0;
        std::memcpy(&capture, payload + 10 + 16 * i + 8, sizeof capture);
        const bool captured = payload[10 + 16 * i + 4] == 0;
        if (captured && capture - seq > end - seq - 1 && capture - seq < ring_.desc_count()) end = capture + 1;
    }
    return end;
}

void ReaderCore::set_release(uint64_t seq) {
    if (seq - release_ > next_ - release_) return;
    if (seq == next_ && signed_before(seq, step_end_) && seq != release_) seq--; // inside a step that was not all read
    while (seq != release_ && seq != next_ && slots_[seq & ring_.mask].inside) seq--;
    if (seq == release_) return;
    release_ = seq;
    // Pairs with the acquire load in WriterCore::refresh: our reads of what lies below come before the writer's next
    // writes there.
    shared(ring_.consumer->release_seq).store(seq, std::memory_order_release);
}

bool ReaderCore::ready() const {
    return next_ - release_ < ring_.desc_count() && shared(ring_.desc(next_).commit).load(poll_order) == next_ + 1;
}

void ReaderCore::arm() const { shared(ring_.consumer->need_wakeup).exchange(1, std::memory_order_seq_cst); }

void ReaderCore::disarm() const { shared(ring_.consumer->need_wakeup).exchange(0, std::memory_order_seq_cst); }

uint64_t ReaderCore::skip_lost() {
    const uint64_t claim = shared(ring_.producer->claim_seq).load();
    if (claim - release_ > ring_.desc_count()) return 0;
    uint64_t lost = 0;
    for (; signed_before(next_, claim) && !ready(); next_++, lost++)
        slots_[next_ & ring_.mask] = Slot{0, signed_before(next_, step_end_), true};
    return lost;
}

} // namespace sonde
