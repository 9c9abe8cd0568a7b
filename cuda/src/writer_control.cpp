// Announcements: records that are never dropped.

#include <algorithm>
#include <initializer_list>

#include "fail.h"
#include "writer.h"

using namespace sonde;

namespace {

constexpr size_t max_control_bytes = 1U << 16; // of MODEL, LAYOUT, REQUEST_OPEN and REQUEST_END payloads
constexpr int32_t max_layer = 1 << 20;

bool texts_fit(std::initializer_list<const char *> texts) {
    for (const char *text : texts)
        if (text_of(text).size() > SONDE_MAX_TEXT) return false;
    return true;
}

// Bytes of a row of this shape, 0 when there are none or too many.
uint64_t row_bytes(const sonde_layout_entry &e) {
    uint64_t n = sonde_dtype_bytes(e.dtype);
    for (uint8_t i = 0; i < e.dims; i++) {
        if (e.shape[i] > SONDE_MAX_ROW_BYTES || n > SONDE_MAX_ROW_BYTES) return 0;
        n *= e.shape[i];
    }
    return n > SONDE_MAX_ROW_BYTES ? 0 : n;
}

sonde_status check_entry(const sonde_layout_entry &e) {
    const std::string_view hook = text_of(e.hook);
    const int shown = static_cast<int>(std::min<size_t>(hook.size(), 80));
    if (hook.size() > SONDE_MAX_TEXT)
        return fail(SONDE_INVALID, "define layout: a hook name has %zu bytes; at most %u", hook.size(), SONDE_MAX_TEXT);
    const char *wrong = nullptr;
    if (sonde_dtype_bytes(e.dtype) == 0) wrong = "has an unknown dtype";
    if (e.select > SONDE_SELECT_SAMPLED) wrong = "selects rows in an unknown way";
    if (e.ragged > 1) wrong = "has a ragged flag that is neither 0 nor 1";
    if (e.layer < -1 || e.layer > max_layer) wrong = "has a layer outside -1 to 1048576";
    if (e.shard > 0 && e.shard >= e.shard_count) wrong = "has a shard at or above its shard count";
    if (e.dims > SONDE_MAX_DIMS) wrong = "has more than 8 dimensions";
    if (wrong == nullptr && row_bytes(e) == 0) wrong = "has rows of no bytes or more than 1 GiB";
    if (wrong == nullptr) return SONDE_OK;
    return fail(SONDE_INVALID, "define layout: entry \"%.*s\" %s", shown, e.hook == nullptr ? "" : e.hook, wrong);
}

LayoutEntry entry_of(const sonde_layout_entry &e) {
    LayoutEntry out;
    out.hook = text_of(e.hook);
    out.layer = e.layer;
    out.dtype = e.dtype;
    out.select = e.select;
    out.ragged = e.ragged != 0;
    out.shape.assign(e.shape, e.shape + e.dims);
    out.shard = e.shard;
    out.shard_count = e.shard_count == 0 ? uint16_t{1} : e.shard_count;
    out.row_bytes = row_bytes(e);
    return out;
}

sonde_status too_much_alive(const char *what) {
    return fail(SONDE_FULL, "%s: 64 MiB of models, layouts and requests are alive already; end requests", what);
}

} // namespace

sonde_status sonde_writer::set_model(const sonde_model &m) {
    if (!texts_fit({m.name, m.revision, m.weights_digest, m.quantisation, m.engine, m.engine_version}))
        return fail(SONDE_INVALID, "set model: a text has more than %u bytes", SONDE_MAX_TEXT);
    auto record = std::make_shared<AliveRecord>();
    record->kind = RING2_KIND_MODEL;
    encode_model(record->payload, m);
    const std::lock_guard<std::mutex> hold(lock_);
    if (!alive_.hold(*record)) return too_much_alive("set model");
    const sonde_status s = control(Control{RING2_KIND_MODEL, 0, record->payload, record, 0});
    if (s != SONDE_OK) alive_.drop(*record);
    return s;
}

sonde_status sonde_writer::define_layout(const sonde_layout_entry *entries, uint32_t count, uint32_t *layout) {
    if (count == 0 || count > SONDE_MAX_ENTRIES)
        return fail(SONDE_INVALID, "define layout: %u entries; want 1 to %u", count, SONDE_MAX_ENTRIES);
    auto made = std::make_unique<Layout>();
    for (uint32_t i = 0; i < count; i++) {
        if (const sonde_status s = check_entry(entries[i]); s != SONDE_OK) return s;
        made->entries.push_back(entry_of(entries[i]));
        made->ragged = made->ragged || entries[i].ragged != 0;
    }
    if (layouts_.size() >= SONDE_MAX_LAYOUTS)
        return fail(SONDE_FULL, "define layout: %u exist already; define each once and use it again",
                    SONDE_MAX_LAYOUTS);
    made->id = static_cast<uint32_t>(layouts_.size());
    auto record = std::make_shared<AliveRecord>();
    record->kind = RING2_KIND_LAYOUT;
    encode_layout(record->payload, *made);
    layouts_.reserve(layouts_.size() + 1); // what can run out of memory comes first
    const std::lock_guard<std::mutex> hold(lock_);
    reserve_entries(count);
    if (!alive_.hold(*record)) return too_much_alive("define layout");
    const sonde_status s = control(Control{RING2_KIND_LAYOUT, 0, record->payload, record, 0});
    if (s != SONDE_OK) {
        alive_.drop(*record);
        return s;
    }
    alive_.add_layout(record);
    *layout = made->id;
    layouts_.push_back(std::move(made));
    return SONDE_OK;
}

// Makes room for the largest layout, so that no step allocates. Handles of detached captures keep theirs: only those at
// rest grow, and the others when they come back.
void sonde_writer::reserve_entries(size_t entries) {
    if (entries <= most_entries_) return;
    most_entries_ = entries;
    step_.offsets.reserve(SONDE_MAX_STEP_LAYOUTS * entries);
    step_.lengths.reserve(SONDE_MAX_STEP_LAYOUTS * entries);
    for (sonde_pending *p : free_pendings_) {
        p->offsets.resize(entries);
        p->lengths.resize(entries);
    }
}

sonde_status sonde_writer::open_request(const sonde_request &r) {
    bool fits = texts_fit({r.external_id, r.engine_id, r.tenant, r.adapter, r.trace_parent});
    if (r.label_count > SONDE_MAX_LABELS)
        return fail(SONDE_INVALID, "open request %llu: %u labels; at most %u",
                    static_cast<unsigned long long>(r.number), r.label_count, SONDE_MAX_LABELS);
    for (uint32_t i = 0; fits && i < r.label_count; i++) fits = texts_fit({r.labels[i].key, r.labels[i].value});
    if (!fits || r.opt_in > 1)
        return fail(SONDE_INVALID, "open request %llu: a text has more than %u bytes, or opt_in is neither 0 nor 1",
                    static_cast<unsigned long long>(r.number), SONDE_MAX_TEXT);
    auto record = std::make_shared<AliveRecord>();
    record->kind = RING2_KIND_REQUEST_OPEN;
    record->number = r.number;
    encode_request(record->payload, r, wall_ns());
    const std::lock_guard<std::mutex> hold(lock_);
    if (alive_.request(r.number) != nullptr)
        return fail(SONDE_INVALID, "open request %llu: it is open already; numbers are unique",
                    static_cast<unsigned long long>(r.number));
    if (alive_.open_requests() >= SONDE_MAX_OPEN)
        return fail(SONDE_FULL, "open request %llu: %u are open already", static_cast<unsigned long long>(r.number),
                    SONDE_MAX_OPEN);
    if (!alive_.hold(*record)) return too_much_alive("open request");
    alive_.add_request(record);
    const sonde_status s = control(Control{RING2_KIND_REQUEST_OPEN, 0, record->payload, record, 0});
    if (s != SONDE_OK) {
        alive_.remove_request(r.number);
        alive_.drop(*record);
    }
    return s;
}

sonde_status sonde_writer::end_request(const sonde_request_end &e) {
    if (e.finish > SONDE_DETECTOR)
        return fail(SONDE_INVALID, "end request %llu: finish %u does not exist",
                    static_cast<unsigned long long>(e.number), e.finish);
    Control record{RING2_KIND_REQUEST_END, 0, {}, nullptr, 0};
    encode_end(record.payload, e, wall_ns());
    const std::lock_guard<std::mutex> hold(lock_);
    const AlivePointer open = alive_.request(e.number);
    if (open == nullptr || open->end_pending)
        return fail(SONDE_INVALID, "end request %llu: it is not open", static_cast<unsigned long long>(e.number));
    if (closing_) return fail(SONDE_CLOSED, "end request: the writer is closed");
    open->end_pending = true;
    record.alive = open;
    const sonde_status s = control(std::move(record));
    // Its end will never be read; it is forgotten as if it had just been.
    if (s != SONDE_OK) alive_.end(open, core_->claim());
    return s;
}

sonde_status sonde_writer::amend(uint64_t step, const sonde_amend_range *ranges, uint32_t count) {
    if (count > SONDE_MAX_STEP_RANGES)
        return fail(SONDE_INVALID, "amend step %llu: %u ranges; at most %u", static_cast<unsigned long long>(step),
                    count, SONDE_MAX_STEP_RANGES);
    for (uint32_t i = 0; i < count; i++)
        if (ranges[i].verdict > SONDE_PHANTOM)
            return fail(SONDE_INVALID, "amend step %llu: verdict %u does not exist",
                        static_cast<unsigned long long>(step), ranges[i].verdict);
    Control record{RING2_KIND_AMEND, step, {}, nullptr, 0};
    encode_amend(record.payload, step, ranges, count);
    const std::lock_guard<std::mutex> hold(lock_);
    return control(std::move(record));
}

// Puts a control record into the ring, or into the queue when there is no room.
sonde_status sonde_writer::control(Control &&record) {
    if (closing_) return fail(SONDE_CLOSED, "the writer is closed");
    if (record.payload.size() > max_control_bytes && record.kind != RING2_KIND_AMEND)
        return fail(SONDE_INVALID, "a record has %zu bytes; at most %zu", record.payload.size(), max_control_bytes);
    if (journal_ != nullptr) record.ordinal = journal_->next_ordinal();
    refresh();
    if (flush() && put(record)) {
        wake_reader();
        return SONDE_OK;
    }
    note_in_journal(record, obituary_never_put);
    if (queue_.push(std::move(record))) return SONDE_OK;
    return fail(SONDE_FULL, "%zu control records wait already; the agent does not keep up",
                queue_.opens.size() + queue_.ends.size());
}

// Moves as much as fits into the ring and says whether nothing is left.
bool sonde_writer::flush() {
    return queue_.empty() || (flush_list(queue_.opens) && flush_missing() && flush_list(queue_.ends));
}

bool sonde_writer::flush_list(std::deque<Control> &list) {
    while (!list.empty()) {
        if (!put(list.front())) return false;
        queue_.bytes -= list.front().payload.size();
        list.pop_front();
    }
    return true;
}

bool sonde_writer::flush_missing() {
    while (!queue_.missing.ranges().empty()) {
        const size_t n = std::min(ControlQueue::missing_per_record, queue_.missing.ranges().size());
        if (!core_->fits_control(missing_bytes(n))) return false;
        encode_missing(scratch_, queue_.missing.ranges().data(), static_cast<uint32_t>(n));
        note_in_journal(RING2_KIND_MISSING, 0, scratch_);
        core_->put_control(RING2_KIND_MISSING, 0, scratch_.data(), scratch_.size());
        queue_.missing.forget(n);
    }
    return true;
}

// Writes a control record into the journal and then into the ring, when it has room, and notes what it means for
// snapshots.
bool sonde_writer::put(Control &record) {
    if (!core_->fits_control(record.payload.size())) return false;
    if (journal_ != nullptr && record.ordinal == 0) record.ordinal = journal_->next_ordinal();
    note_in_journal(record, 0);
    note_put(record, core_->put_control(record.kind, record.step, record.payload.data(), record.payload.size()));
    return true;
}

void sonde_writer::note_put(const Control &record, uint64_t seq) {
    switch (record.kind) {
    case RING2_KIND_MODEL:
        if (alive_.model() != nullptr) alive_.end(alive_.model(), seq);
        alive_.set_model(record.alive);
        [[fallthrough]];
    case RING2_KIND_LAYOUT:
    case RING2_KIND_REQUEST_OPEN:
        record.alive->seq = seq;
        record.alive->ordinal = record.ordinal;
        record.alive->published = true;
        break;
    case RING2_KIND_REQUEST_END: alive_.end(record.alive, seq); break;
    default: break;
    }
}
