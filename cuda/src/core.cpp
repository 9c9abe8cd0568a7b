#include "core.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "poison.h"

namespace sonde {

namespace {

// Bounds of quarantined spans. At either bound a stuck span is not moved past, and the ring drops captures when it is
// full.
constexpr size_t max_holes = 64;
constexpr uint64_t max_holes_fraction = 4; // of the data

} // namespace

WriterCore::WriterCore(const Ring &ring, const ring2_config &config, Clock clock, uint64_t start_seq,
                       uint64_t start_pos)
    : ring_(ring),
      now_(clock),
      reserve_descs_(config.reserve_descs),
      reserve_bytes_(config.reserve_bytes),
      claim_(start_seq),
      head_(start_pos),
      tail_(start_seq),
      tail_pos_(start_pos),
      release_(start_seq),
      refused_(start_seq),
      slots_(ring.desc_count()) {
    holes_.reserve(max_holes);
    if (start_seq != 0) {
        // Zeroed commit words differ from what the first lap publishes only when that lap starts at zero.
        for (uint64_t i = 0; i < ring_.desc_count(); i++)
            shared(ring_.desc(start_seq + i).commit).store(start_seq + i + 1 - ring_.desc_count());
    }
    shared(ring_.consumer->release_seq).store(start_seq);
    shared(ring_.producer->claim_seq).store(start_seq);
    init_config(ring_, config);
}

void WriterCore::guard_data() {
    guarded_ = true;
    SONDE_POISON(ring_.data, ring_.data_bytes());
}

void WriterCore::open_span(uint64_t pos, uint64_t bytes) const {
    if (guarded_) SONDE_UNPOISON(ring_.span(pos), bytes);
}

void WriterCore::close_span(const uint8_t *at, uint64_t bytes) const {
    if (guarded_) SONDE_POISON(at, bytes);
}

void WriterCore::refresh() {
    // Pairs with the release store in readerCore.setRelease (ring2/core_reader.go): the reader is done with everything
    // below.
    const uint64_t r = shared(ring_.consumer->release_seq).load(std::memory_order_acquire);
    if (r == release_ || r == refused_) {
        // A word that was refused stays refused: the claim may pass it later.
    } else if (r - release_ > claim_ - release_ || (r != claim_ && slots_[r & ring_.mask].kind == RING2_KIND_CAPTURE)) {
        refused_ = r;
        counters_.refused_releases++;
    } else {
        release_ = refused_ = r;
    }
    reclaim();
}

void WriterCore::reset_reader() {
    refresh();
    refused_ = release_;
    shared(ring_.consumer->release_seq).store(release_);
    shared(ring_.consumer->need_wakeup).exchange(0);
}

void WriterCore::reclaim() {
    uint64_t limit = release_;
    if (open_ && limit - tail_ > open_seq_ - tail_) limit = open_seq_;
    for (; tail_ != limit; tail_++) {
        Slot &s = slots_[tail_ & ring_.mask];
        if (s.copy != nullptr && !quarantine(s.copy)) return;
        s.copy = nullptr;
        tail_pos_ = s.end;
    }
    if (tail_ == claim_) tail_pos_ = head_;
}

// Takes the span of a stuck copy out of use, so that the ring can move past it although the copy may still write there.
bool WriterCore::quarantine(Copy *copy) {
    if (!copy->stuck) return false;
    if (holes_.size() >= max_holes ||
        quarantined_bytes() + align_up(copy->bytes) > ring_.data_bytes() / max_holes_fraction)
        return false;
    copy->past = true;
    holes_.push_back(copy);
    return true;
}

uint64_t WriterCore::quarantined_bytes() const {
    uint64_t n = 0;
    for (const Copy *hole : holes_) n += align_up(hole->bytes);
    return n;
}

uint64_t WriterCore::max_record_bytes() const {
    return std::min((ring_.data_bytes() - reserve_bytes_) / 2,
                    uint64_t{UINT32_MAX} & ~uint64_t{RING2_PAYLOAD_ALIGN - 1});
}

// Finds room for a record. Only control records may use the reserve.
uint32_t WriterCore::place(Cursor at, uint64_t bytes, bool control, uint64_t *pos) const {
    const uint64_t size = align_up(bytes);
    const uint64_t spare = control ? 0 : reserve_descs_;
    const uint64_t limit = control ? ring_.data_bytes() : ring_.data_bytes() - reserve_bytes_;
    if (size > max_record_bytes()) return SONDE_OVERSIZE;
    if (at.claim - tail_ + spare >= ring_.desc_count()) return SONDE_NO_SLOT;
    *pos = around(at.head, size);
    return *pos + size - tail_pos_ > limit ? SONDE_NO_SPACE : SONDE_CAPTURED;
}

// Moves a position forward until size bytes there neither cross the end of data nor touch a hole. It gives up after two
// laps, which never fit.
uint64_t WriterCore::around(uint64_t pos, uint64_t size) const {
    for (const uint64_t start = pos; pos - start <= 2 * ring_.data_bytes();) {
        const uint64_t off = pos & ring_.data_mask;
        uint64_t next = off + size > ring_.data_bytes() ? ring_.data_bytes() : off;
        for (const Copy *hole : holes_) {
            const uint64_t first = hole->pos & ring_.data_mask;
            const uint64_t end = first + align_up(hole->bytes);
            if (off < end && first < off + size) next = std::max(next, end);
        }
        if (next == off) return pos;
        pos += next - off;
    }
    return pos;
}

// Claims the record that place found and fills its descriptor, except for what publish adds.
ring2_desc &WriterCore::take(Cursor *at, uint64_t pos, uint64_t bytes, uint16_t kind, uint64_t step) {
    ring2_desc &d = ring_.desc(at->claim);
    // The commit word keeps the value of the last lap until the record is published.
    std::memset(&d.seq, 0, sizeof d - offsetof(ring2_desc, seq));
    d.seq = at->claim;
    d.data_pos = pos;
    d.data_len = static_cast<uint32_t>(bytes);
    d.kind = kind;
    if (kind != RING2_KIND_CAPTURE) d.capture_ns = now_(); // that of a capture comes with its publication
    d.step = step;
    at->head = pos + align_up(bytes);
    slots_[at->claim & ring_.mask] = Slot{at->head, nullptr, kind};
    at->claim++;
    return d;
}

ring2_desc &WriterCore::take_control(Cursor *at, uint64_t pos, uint16_t kind, uint64_t step, const uint8_t *payload,
                                     uint64_t bytes) {
    ring2_desc &d = take(at, pos, bytes, kind, step);
    open_span(pos, bytes);
    if (bytes > 0) std::memcpy(ring_.span(pos), payload, bytes);
    close_span(ring_.span(pos), bytes);
    d.payload_crc32c = crc32c(payload, bytes);
    return d;
}

void WriterCore::advance(Cursor at) {
    claim_ = at.claim;
    head_ = at.head;
    // Read by the agent after our death, to know what was under way (readerCore.claimed). It is stored before any
    // commit below it.
    shared(ring_.producer->claim_seq).store(at.claim, std::memory_order_relaxed);
}

void WriterCore::publish(ring2_desc &desc, uint16_t flags, uint64_t seq) {
    desc.flags = static_cast<uint16_t>(desc.flags | flags);
    desc.crc32c = checksum(desc);
    // Pairs with the acquire load of commit in readerCore.poll (ring2/core_reader.go): whoever sees seq + 1 sees
    // descriptor and payload.
    shared(desc.commit).store(seq + 1, std::memory_order_release);
}

// Publishes a capture whose copy is complete: from now on its rows can be judged.
void WriterCore::publish_capture(uint64_t seq, uint16_t flags) const {
    ring2_desc &d = ring_.desc(seq);
    d.capture_ns = now_();
    publish(d, flags, seq);
}

bool WriterCore::fits_control(uint64_t bytes) const {
    uint64_t pos = 0;
    return place(Cursor{claim_, head_}, bytes, true, &pos) == SONDE_CAPTURED;
}

uint32_t WriterCore::place_obituary(uint64_t bytes) const {
    uint64_t pos = 0;
    const uint32_t why = place(Cursor{claim_, head_}, bytes, false, &pos);
    return why == SONDE_CAPTURED && claim_ - tail_ >= ring_.desc_count() / 2 ? uint32_t{SONDE_NO_SLOT} : why;
}

uint64_t WriterCore::put_control(uint16_t kind, uint64_t step, const uint8_t *payload, uint64_t bytes) {
    Cursor at{claim_, head_};
    uint64_t pos = 0;
    if (place(at, bytes, true, &pos) != SONDE_CAPTURED) std::abort(); // BUG: the caller has asked fits_control
    const uint64_t seq = at.claim;
    ring2_desc &d = take_control(&at, pos, kind, step, payload, bytes);
    advance(at);
    publish(d, RING2_FLAG_PAYLOAD_CRC, seq);
    return seq;
}

bool WriterCore::plan_step(Plan *plans, uint32_t count, uint64_t step_bytes, uint64_t *step_pos) const {
    Cursor at{claim_, head_};
    if (place(at, step_bytes, true, step_pos) != SONDE_CAPTURED) return false;
    at = Cursor{at.claim + 1, *step_pos + align_up(step_bytes)};
    for (uint32_t i = 0; i < count; i++) {
        Plan &p = plans[i];
        p.seq = at.claim;
        p.outcome = place(at, p.bytes, false, &p.pos);
        if (p.outcome == SONDE_CAPTURED) at = Cursor{at.claim + 1, p.pos + align_up(p.bytes)};
    }
    return true;
}

void WriterCore::count_step(const Plan *plans, uint32_t count) {
    counters_.steps++;
    for (uint32_t i = 0; i < count; i++) {
        const Plan &p = plans[i];
        counters_.captured_rows += p.ledger_rows;
        if (p.outcome != SONDE_CAPTURED) counters_.dropped_rows[p.outcome] += p.ledger_rows;
    }
    store_counters();
}

void WriterCore::claim_step(const Plan *plans, uint32_t count, uint64_t step_pos, uint64_t step, const uint8_t *payload,
                            uint64_t bytes) {
    Cursor at{claim_, head_};
    open_ = true;
    open_seq_ = at.claim;
    ring2_desc &step_desc = take_control(&at, step_pos, RING2_KIND_STEP, step, payload, bytes);
    for (uint32_t i = 0; i < count; i++) {
        const Plan &p = plans[i];
        if (p.outcome != SONDE_CAPTURED) continue;
        if (p.seq != at.claim) std::abort(); // BUG: a capture was claimed in another order than planned
        ring2_desc &d = take(&at, p.pos, p.bytes, RING2_KIND_CAPTURE, step);
        open_span(p.pos, p.bytes);
        d.layout = p.layout->id;
        d.rows = static_cast<uint32_t>(p.token_rows);
    }
    count_step(plans, count);
    advance(at);
    publish(step_desc, RING2_FLAG_PAYLOAD_CRC, open_seq_);
}

void WriterCore::finish(const Plan &plan, bool aborted) {
    if (aborted) {
        counters_.aborted_rows += plan.ledger_rows;
        store_counters();
    }
    close_span(ring_.span(plan.pos), plan.bytes);
    publish_capture(plan.seq, aborted ? RING2_FLAG_ABORTED : 0);
}

void WriterCore::detach(const Plan &plan, Copy *copy) {
    *copy = Copy{plan.seq, plan.pos, plan.bytes, now_(), plan.ledger_rows, false, false};
    slots_[plan.seq & ring_.mask].copy = copy;
}

void WriterCore::finish_copy(Copy *copy, bool aborted) {
    close_span(ring_.span(copy->pos), copy->bytes);
    if (copy->past) {
        std::erase(holes_, copy);
        return;
    }
    slots_[copy->seq & ring_.mask].copy = nullptr; // the tail stands before it until now
    if (copy->stuck) return;                       // published already
    if (aborted) {
        counters_.aborted_rows += copy->ledger_rows;
        store_counters();
    }
    publish_capture(copy->seq, aborted ? RING2_FLAG_ABORTED : 0);
}

bool WriterCore::abort_stuck(uint64_t before_ns) {
    const uint64_t known = counters_.stuck_copies;
    for (uint64_t seq = tail_; seq != claim_; seq++) {
        Copy *copy = slots_[seq & ring_.mask].copy;
        if (copy == nullptr || copy->stuck || copy->claim_ns > before_ns) continue;
        copy->stuck = true;
        counters_.stuck_copies++;
        counters_.aborted_rows += copy->ledger_rows;
        publish_capture(seq, RING2_FLAG_ABORTED);
    }
    store_counters();
    return counters_.stuck_copies > known;
}

void WriterCore::store_counters() const {
    ring2_producer &p = *ring_.producer;
    constexpr auto relaxed = std::memory_order_relaxed; // the agent reconciles with them after our death
    shared(p.captured_rows).store(counters_.captured_rows, relaxed);
    for (size_t i = 0; i < counters_.dropped_rows.size(); i++)
        shared(p.dropped_rows[i]).store(counters_.dropped_rows[i], relaxed);
    shared(p.aborted_rows).store(counters_.aborted_rows, relaxed);
    shared(p.steps).store(counters_.steps, relaxed);
}

bool WriterCore::take_wake_request() const {
    // A read-modify-write on purpose: it and the reader's exchange in readerCore.arm (ring2/core_reader.go) are
    // ordered, so either the reader's re-check sees our commit or we see its 1.
    return shared(ring_.consumer->need_wakeup).exchange(0, std::memory_order_seq_cst) == 1;
}

void WriterCore::beat() const { shared(ring_.producer->beat_ns).store(now_(), std::memory_order_relaxed); }

void WriterCore::store_closing() const { shared(ring_.producer->closing).store(1); }

} // namespace sonde
