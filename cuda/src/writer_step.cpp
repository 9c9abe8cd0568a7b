// Steps: one STEP record and one CAPTURE for each layout, claimed in one go.

#include <algorithm>
#include <cstring>

#include "fail.h"
#include "writer.h"

using namespace sonde;

namespace {

bool everything_fits(const Plan *plans, uint32_t count) {
    return std::all_of(plans, plans + count, [](const Plan &p) {
        return p.outcome == SONDE_CAPTURED || p.outcome == SONDE_OVERSIZE; // waiting cannot help the latter
    });
}

sonde_status check_ranges(const sonde_range *ranges, uint32_t count, uint32_t layout_count) {
    uint64_t rows = 0;
    for (uint32_t i = 0; i < count; i++) {
        const sonde_range &r = ranges[i];
        rows += r.count;
        const bool foreign_bit = layout_count < SONDE_MAX_STEP_LAYOUTS && r.layout_mask >> layout_count != 0;
        if (r.count == 0 || r.position + r.count < r.position || r.phase > SONDE_RECOMPUTE || r.sampled > 1 ||
            foreign_bit)
            return fail(SONDE_INVALID,
                        "begin step: range %u has position %u, %u tokens, phase %u and mask %#llx for %u layouts", i,
                        r.position, r.count, r.phase, static_cast<unsigned long long>(r.layout_mask), layout_count);
    }
    if (rows > SONDE_MAX_STEP_ROWS)
        return fail(SONDE_INVALID, "begin step: %llu token rows; at most %u", static_cast<unsigned long long>(rows),
                    SONDE_MAX_STEP_ROWS);
    return SONDE_OK;
}

} // namespace

sonde_status sonde_writer::begin_step(const sonde_range *ranges, uint32_t range_count, const uint32_t *layouts,
                                      uint32_t layout_count, const sonde_ragged *ragged, uint32_t ragged_count) {
    std::unique_lock<std::mutex> hold(lock_);
    if (closing_) return fail(SONDE_CLOSED, "begin step: the writer is closed");
    if (step_.open) return fail(SONDE_STATE, "begin step: the step before was not committed");
    const sonde_status s = plan(ranges, range_count, layouts, layout_count, ragged, ragged_count);
    if (s != SONDE_OK) return s;
    if (!try_step(range_count) && o_.mode == SONDE_COMPLETE && stall_.may_wait(o_.stall_limit, core_->release()))
        wait_for_room(hold, range_count);
    if (closing_) return fail(SONDE_CLOSED, "begin step: the writer was closed while it waited");
    step_.number = next_step_++;
    encode_step(scratch_, step_.number, step_.layouts.data(), step_.count, ranges, range_count);
    note_in_journal(RING2_KIND_STEP, step_.named ? 0 : obituary_never_put, scratch_);
    if (step_.named) {
        core_->claim_step(step_.plans.data(), step_.count, step_.pos, step_.number, scratch_.data(), scratch_.size());
        write_ragged_tables();
        clear_gaps();
    } else {
        queue_.missing.add_step(ranges, range_count, step_.plans.data(), step_.count, step_.number, SONDE_CONTROL_FULL);
        core_->count_step(step_.plans.data(), step_.count);
    }
    step_.open = true; // a sleeping reader is woken by the commit: until then it could only wait for the captures
    return SONDE_OK;
}

// Checks a step and computes what it needs.
sonde_status sonde_writer::plan(const sonde_range *ranges, uint32_t range_count, const uint32_t *layouts,
                                uint32_t layout_count, const sonde_ragged *ragged, uint32_t ragged_count) {
    if (range_count == 0 || range_count > SONDE_MAX_STEP_RANGES || layout_count > SONDE_MAX_STEP_LAYOUTS)
        return fail(SONDE_INVALID, "begin step: %u ranges and %u layouts; want 1 to %u and at most %u", range_count,
                    layout_count, SONDE_MAX_STEP_RANGES, SONDE_MAX_STEP_LAYOUTS);
    if (const sonde_status s = check_ranges(ranges, range_count, layout_count); s != SONDE_OK) return s;
    for (uint32_t i = 0; i < layout_count; i++)
        if (layout(layouts[i]) == nullptr)
            return fail(SONDE_INVALID, "begin step: layout %u is not defined", layouts[i]);
    for (uint32_t i = 0; i < ragged_count; i++) {
        const sonde_ragged &r = ragged[i];
        const Layout *l = r.layout_index < layout_count ? layout(layouts[r.layout_index]) : nullptr;
        if (l == nullptr || r.entry >= l->entries.size() || !l->entries[r.entry].ragged ||
            r.bytes > SONDE_MAX_ROW_BYTES)
            return fail(SONDE_INVALID,
                        "begin step: ragged size of %llu bytes for entry %u of layout index %u: no such ragged "
                        "entry, or above 1 GiB",
                        static_cast<unsigned long long>(r.bytes), r.entry, r.layout_index);
    }
    step_.offsets.clear();
    step_.lengths.clear();
    step_.count = layout_count;
    for (uint32_t i = 0; i < layout_count; i++) {
        Plan &p = step_.plans[i];
        p = Plan{};
        p.layout = layout(layouts[i]);
        step_.fates[i] = Fate::commit;
        step_.layouts[i] = StepLayout{layouts[i], 0, 0};
        measure(p, i, ranges, range_count, ragged, ragged_count);
    }
    return SONDE_OK;
}

// Computes what a layout needs in the step, and where its entries lie in its payload.
void sonde_writer::measure(Plan &p, uint32_t index, const sonde_range *ranges, uint32_t range_count,
                           const sonde_ragged *ragged, uint32_t ragged_count) {
    p.token_rows = selected_rows(ranges, range_count, index, SONDE_SELECT_ALL);
    p.sampled_rows = selected_rows(ranges, range_count, index, SONDE_SELECT_SAMPLED);
    step_.first[index] = step_.offsets.size();
    const auto entries = static_cast<uint32_t>(p.layout->entries.size());
    if (p.layout->ragged) p.bytes = align_up(uint64_t{8} * entries);
    for (uint32_t e = 0; e < entries; e++) {
        uint64_t n = p.rows(e) * p.layout->entries[e].row_bytes;
        if (p.layout->entries[e].ragged) {
            n = 8 * (p.rows(e) + 1);
            for (uint32_t r = 0; r < ragged_count; r++)
                if (ragged[r].layout_index == index && ragged[r].entry == e) n += ragged[r].bytes;
        }
        step_.offsets.push_back(p.bytes);
        step_.lengths.push_back(n);
        p.bytes += align_up(n);
        p.ledger_rows += p.rows(e);
    }
}

// Decides what fits now; false: waiting could help.
bool sonde_writer::try_step(uint32_t range_count) {
    refresh();
    step_.named =
        flush() && core_->plan_step(step_.plans.data(), step_.count, step_bytes(step_.count, range_count), &step_.pos);
    for (uint32_t i = 0; i < step_.count; i++) {
        Plan &p = step_.plans[i];
        if (!step_.named) p.outcome = SONDE_CONTROL_FULL;
        step_.layouts[i].outcome = static_cast<uint8_t>(p.outcome);
        step_.layouts[i].capture_seq = p.outcome == SONDE_CAPTURED ? p.seq : 0;
    }
    return step_.named && everything_fits(step_.plans.data(), step_.count);
}

// Waits until the step fits or its budget is used up. The lock is free while it sleeps.
void sonde_writer::wait_for_room(std::unique_lock<std::mutex> &hold, uint32_t range_count) {
    const uint64_t start = monotonic_ns(), budget = o_.step_stall_budget_ns;
    uint64_t nap = 20000;
    wake_reader();
    for (bool fits = false;;) {
        const uint64_t waited = monotonic_ns() - start;
        if (fits || waited >= budget || closing_) {
            stall_.note(waited, !fits, core_->release());
            return;
        }
        hold.unlock();
        sleep_ns(std::min(nap, budget - waited));
        hold.lock();
        nap = std::min<uint64_t>(2 * nap, 1000000);
        fits = try_step(range_count);
    }
}

// Writes the sizes of entries at the start of captures that need them.
void sonde_writer::write_ragged_tables() {
    for (uint32_t i = 0; i < step_.count; i++) {
        const Plan &p = step_.plans[i];
        if (p.outcome != SONDE_CAPTURED || !p.layout->ragged) continue;
        const size_t bytes = 8 * p.layout->entries.size();
        uint8_t *table = core_->ring().span(p.pos);
        std::memset(table, 0, align_up(bytes));
        std::memcpy(table, step_.lengths.data() + step_.first[i], bytes);
    }
}

// Clears what lies between entries: it must not show what an older record, perhaps another tenant's, left there.
void sonde_writer::clear_gaps() {
    for (uint32_t i = 0; i < step_.count; i++) {
        const Plan &p = step_.plans[i];
        if (p.outcome != SONDE_CAPTURED) continue;
        uint8_t *at = core_->ring().span(p.pos);
        for (size_t e = step_.first[i]; e < step_.first[i] + p.layout->entries.size(); e++) {
            const uint64_t end = step_.offsets[e] + step_.lengths[e];
            std::memset(at + end, 0, align_up(end) - end);
            core_->close_span(at + end, align_up(end) - end);
        }
    }
}

void *sonde_writer::step_span(uint32_t layout_index, uint32_t entry, uint64_t *bytes) const {
    if (bytes != nullptr) *bytes = 0;
    if (!step_.open || layout_index >= step_.count) return nullptr;
    const Plan &p = step_.plans[layout_index];
    if (p.outcome != SONDE_CAPTURED || entry >= p.layout->entries.size()) return nullptr;
    const size_t at = step_.first[layout_index] + entry;
    if (bytes != nullptr) *bytes = step_.lengths[at];
    return core_->ring().span(p.pos) + step_.offsets[at];
}

sonde_status sonde_writer::abort_layout(uint32_t layout_index) {
    if (!step_.open) return fail(SONDE_STATE, "abort layout: no step is open");
    if (layout_index >= step_.count)
        return fail(SONDE_INVALID, "abort layout: index %u of %u layouts", layout_index, step_.count);
    if (step_.fates[layout_index] == Fate::commit) step_.fates[layout_index] = Fate::abort;
    return SONDE_OK;
}

sonde_status sonde_writer::detach(uint32_t layout_index, sonde_pending **pending) {
    *pending = nullptr;
    if (!step_.open) return fail(SONDE_STATE, "detach layout: no step is open");
    if (layout_index >= step_.count)
        return fail(SONDE_INVALID, "detach layout: index %u of %u layouts", layout_index, step_.count);
    const Plan &p = step_.plans[layout_index];
    if (p.outcome != SONDE_CAPTURED) return SONDE_OK;
    if (step_.fates[layout_index] != Fate::commit)
        return fail(SONDE_STATE, "detach layout: index %u was detached or aborted before", layout_index);
    const std::lock_guard<std::mutex> hold(lock_);
    if (free_pendings_.empty())
        return fail(SONDE_FULL, "detach layout: %u detached captures have not completed", SONDE_MAX_DETACHED);
    sonde_pending *out = free_pendings_.back();
    free_pendings_.pop_back();
    step_.fates[layout_index] = Fate::detached;
    out->entries = p.layout->entries.size();
    out->offsets.resize(most_entries_);
    out->lengths.resize(most_entries_);
    const auto first = static_cast<std::ptrdiff_t>(step_.first[layout_index]);
    std::copy_n(step_.offsets.begin() + first, out->entries, out->offsets.begin());
    std::copy_n(step_.lengths.begin() + first, out->entries, out->lengths.begin());
    out->at = core_->ring().span(p.pos);
    core_->detach(p, &out->copy);
    users_.fetch_add(1, std::memory_order_relaxed);
    *pending = out;
    return SONDE_OK;
}

void sonde_writer::finish(sonde_pending *pending, bool aborted) {
    {
        const std::lock_guard<std::mutex> hold(lock_);
        core_->finish_copy(&pending->copy, aborted);
        free_pendings_.push_back(pending);
        wake_reader();
    }
    leave();
}

sonde_status sonde_writer::commit_step() {
    const std::lock_guard<std::mutex> hold(lock_);
    if (!step_.open) return fail(SONDE_STATE, "commit step: no step is open");
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < step_.count; i++) {
        const Plan &p = step_.plans[i];
        if (p.outcome != SONDE_CAPTURED || step_.fates[i] == Fate::detached) continue;
        core_->finish(p, step_.fates[i] == Fate::abort);
        bytes += p.bytes;
    }
    core_->end_step();
    wake_reader_soon(bytes);
    step_.open = false;
    return SONDE_OK;
}
