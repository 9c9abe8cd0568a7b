// WriterCore claims and publishes records in one ring. It works on plain memory, never blocks and allocates nothing
// after its construction. Its owner holds a lock. Sequence numbers and positions count modulo 2^64, so every comparison
// is one of differences.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "layout.h"
#include "ring.h"

namespace sonde {

// A capture whose copy goes on after the step's commit, as a DMA does. All its fields but span, offsets and lengths
// belong to the core's lock.
struct Copy {
    uint64_t seq = 0, pos = 0, bytes = 0, claim_ns = 0, ledger_rows = 0;
    bool stuck = false; // published as aborted by the writer; the copy may still write
    bool past = false;  // the ring has moved past it: its span is a hole
};

// One layout of a step: what it needs and what became of it.
struct Plan {
    const Layout *layout = nullptr;
    uint64_t token_rows = 0, sampled_rows = 0;
    uint64_t ledger_rows = 0; // sum over the entries
    uint64_t bytes = 0;       // payload, every entry aligned
    uint32_t outcome = SONDE_CAPTURED;
    uint64_t seq = 0, pos = 0; // when captured

    uint64_t rows(uint32_t entry) const {
        return layout->entries[entry].select == SONDE_SELECT_SAMPLED ? sampled_rows : token_rows;
    }
};

struct Counters {
    uint64_t captured_rows = 0, aborted_rows = 0, steps = 0, refused_releases = 0, stuck_copies = 0;
    std::array<uint64_t, SONDE_REASONS> dropped_rows{};
};

class WriterCore {
public:
    using Clock = uint64_t (*)();

    // Starts a ring at a sequence number and a data position: zero, or in tests near the end of their ranges.
    WriterCore(const Ring &ring, const ring2_config &config, Clock clock, uint64_t start_seq, uint64_t start_pos);

    // Lets AddressSanitizer find every write into the data that is not into a span that is open: behind its end,
    // between its entries, after its commit. For memory that only the writer touches.
    void guard_data();
    // Closes the gap behind an entry of an open span.
    void close_span(const uint8_t *at, uint64_t bytes) const;
    // Takes the reader's release word and reclaims what it frees. A word that decreases, passes the claim or stops
    // inside a step is refused.
    void refresh();
    // Takes back what a dead reader left in its zone.
    void reset_reader();
    // Says whether put_control would succeed.
    bool fits_control(uint64_t bytes) const;
    // SONDE_CAPTURED: an obituary has room now. Obituaries are in no hurry: they leave the reserve to control records,
    // and half of the descriptors to captures. SONDE_OVERSIZE: it never has room.
    uint32_t place_obituary(uint64_t bytes) const;
    // Writes a whole control record and returns its sequence number. The caller has asked fits_control.
    uint64_t put_control(uint16_t kind, uint64_t step, const uint8_t *payload, uint64_t bytes);
    // Decides what of a step fits. It claims nothing. false: not even the STEP record fits.
    bool plan_step(Plan *plans, uint32_t count, uint64_t step_bytes, uint64_t *step_pos) const;
    // Counts a step's rows before anything of it is visible.
    void count_step(const Plan *plans, uint32_t count);
    // Claims what plan_step found, in its order, and publishes the STEP record first.
    void claim_step(const Plan *plans, uint32_t count, uint64_t step_pos, uint64_t step, const uint8_t *payload,
                    uint64_t bytes);
    // Publishes one capture of the open step.
    void finish(const Plan &plan, bool aborted);
    void end_step() { open_ = false; }

    // Lets the copy of a capture outlive its step.
    void detach(const Plan &plan, Copy *copy);
    // Publishes a detached capture, or takes back the span of one that was stuck. The copy is free afterwards.
    void finish_copy(Copy *copy, bool aborted);
    // Aborts detached copies that were claimed before a moment. The tail may then move past their spans, which stay out
    // of use until the copy completes. It says whether there were any.
    bool abort_stuck(uint64_t before_ns);

    // Says whether the reader blocks and must be woken.
    bool take_wake_request() const;
    void beat() const;
    // Stored before the BYE: who sees that knows that the end is a clean one.
    void store_closing() const;

    uint64_t claim() const { return claim_; }
    uint64_t release() const { return release_; }
    uint64_t now() const { return now_(); }
    uint64_t quarantined_bytes() const;
    const Counters &counters() const { return counters_; }
    const Ring &ring() const { return ring_; }

private:
    struct Slot {
        uint64_t end = 0; // data position after the record
        Copy *copy = nullptr;
        uint16_t kind = 0;
    };
    struct Cursor {
        uint64_t claim, head;
    };

    void reclaim();
    bool quarantine(Copy *copy);
    void open_span(uint64_t pos, uint64_t bytes) const;
    uint64_t max_record_bytes() const;
    uint32_t place(Cursor at, uint64_t bytes, bool control, uint64_t *pos) const;
    uint64_t around(uint64_t pos, uint64_t size) const;
    ring2_desc &take(Cursor *at, uint64_t pos, uint64_t bytes, uint16_t kind, uint64_t step);
    ring2_desc &take_control(Cursor *at, uint64_t pos, uint16_t kind, uint64_t step, const uint8_t *payload,
                             uint64_t bytes);
    void advance(Cursor at);
    static void publish(ring2_desc &desc, uint16_t flags, uint64_t seq);
    void publish_capture(uint64_t seq, uint16_t flags) const;
    void store_counters() const;

    Ring ring_;
    Clock now_;
    uint64_t reserve_descs_, reserve_bytes_;
    uint64_t claim_, head_;    // next sequence number, next data position
    uint64_t tail_, tail_pos_; // what is below is reusable: released, and its copies completed
    uint64_t release_;         // last release word that was accepted
    uint64_t refused_;         // last release word that was refused
    bool guarded_ = false;     // guard_data was called
    bool open_ = false;        // between claim_step and end_step
    uint64_t open_seq_ = 0;    // first sequence number of the open step
    std::vector<Slot> slots_;
    std::vector<Copy *> holes_; // spans of stuck copies that the ring has moved past
    Counters counters_;
};

} // namespace sonde
