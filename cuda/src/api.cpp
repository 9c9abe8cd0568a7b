// The C interface: checks of arguments, and a wall that no exception passes.

#include <exception>
#include <new>

#include "fail.h"
#include "writer.h"

using namespace sonde;

namespace {

// Runs a call of the library. Standard exceptions, which can only mean that memory or threads ran out, become a status.
template <class Call>
sonde_status guarded(const char *what, Call call) noexcept {
    try {
        return call();
    } catch (const std::bad_alloc &) {
        return fail(SONDE_SYSTEM, "%s: out of memory", what);
    } catch (const std::exception &e) {
        return fail(SONDE_SYSTEM, "%s: %s", what, e.what());
    }
}

// Refuses a missing writer, and one of the process that forked us.
sonde_status check_writer(const sonde_writer *writer, const char *what) {
    if (writer == nullptr) return fail(SONDE_INVALID, "%s: the writer is NULL", what);
    if (writer->generation() != fork_generation())
        return fail(SONDE_FORKED, "%s: the writer belongs to the parent process; open one in this process", what);
    return SONDE_OK;
}

template <class Call>
sonde_status with_writer(sonde_writer *writer, const char *what, Call call) noexcept {
    if (const sonde_status s = check_writer(writer, what); s != SONDE_OK) return s;
    return guarded(what, call);
}

sonde_status missing_argument(const char *what) { return fail(SONDE_INVALID, "%s: an argument is NULL", what); }

} // namespace

extern "C" {

const char *sonde_version(void) { return "libsonde 1 for ring ABI 1.0"; }

const char *sonde_last_error(void) { return last_failure(); }

uint32_t sonde_dtype_bytes(uint32_t dtype) {
    constexpr uint32_t bytes[] = {0, 4, 2, 2, 1, 1, 4, 1, 8, 2, 1};
    return dtype < sizeof bytes / sizeof bytes[0] ? bytes[dtype] : 0;
}

sonde_status sonde_writer_open(const sonde_writer_options *options, sonde_writer **writer) {
    if (options == nullptr || writer == nullptr) return missing_argument("open writer");
    *writer = nullptr;
    return guarded("open writer", [&] {
        auto made = std::make_unique<sonde_writer>();
        const sonde_status s = made->open(*options, 0, 0);
        if (s == SONDE_OK) *writer = made.release();
        return s;
    });
}

sonde_status sonde_writer_close(sonde_writer *writer, uint64_t timeout_ns) {
    return with_writer(writer, "close writer", [&] { return writer->close(timeout_ns); });
}

void sonde_writer_free(sonde_writer *writer) {
    if (writer == nullptr || check_writer(writer, "free writer") != SONDE_OK) return;
    (void)guarded("free writer", [&] { return writer->close(0); });
    writer->leave();
}

uint64_t sonde_writer_epoch(const sonde_writer *writer) { return writer == nullptr ? 0 : writer->epoch(); }

sonde_status sonde_writer_stats(sonde_writer *writer, sonde_stats *stats) {
    if (stats == nullptr) return missing_argument("read statistics");
    return with_writer(writer, "read statistics", [&] {
        writer->fill_stats(stats);
        return sonde_status{SONDE_OK};
    });
}

sonde_status sonde_writer_journal_stats(sonde_writer *writer, sonde_journal_stats *stats) {
    if (stats == nullptr) return missing_argument("read statistics");
    return with_writer(writer, "read statistics", [&] {
        writer->fill_journal_stats(stats);
        return SONDE_OK;
    });
}

sonde_status sonde_writer_wait_attached(sonde_writer *writer, uint64_t timeout_ns) {
    if (const sonde_status s = check_writer(writer, "wait for agent"); s != SONDE_OK) return s;
    for (const uint64_t start = monotonic_ns(); !writer->attached(); sleep_ns(1000000))
        if (monotonic_ns() - start >= timeout_ns)
            return fail(SONDE_TIMEOUT, "wait for agent: no agent took the ring in time");
    return SONDE_OK;
}

sonde_status sonde_set_model(sonde_writer *writer, const sonde_model *model) {
    if (model == nullptr) return missing_argument("set model");
    return with_writer(writer, "set model", [&] { return writer->set_model(*model); });
}

sonde_status sonde_define_layout(sonde_writer *writer, const sonde_layout_entry *entries, uint32_t count,
                                 uint32_t *layout) {
    if (entries == nullptr || layout == nullptr) return missing_argument("define layout");
    return with_writer(writer, "define layout", [&] { return writer->define_layout(entries, count, layout); });
}

sonde_status sonde_open_request(sonde_writer *writer, const sonde_request *request) {
    if (request == nullptr || (request->labels == nullptr && request->label_count > 0))
        return missing_argument("open request");
    return with_writer(writer, "open request", [&] { return writer->open_request(*request); });
}

sonde_status sonde_end_request(sonde_writer *writer, const sonde_request_end *end) {
    if (end == nullptr) return missing_argument("end request");
    return with_writer(writer, "end request", [&] { return writer->end_request(*end); });
}

sonde_status sonde_amend(sonde_writer *writer, uint64_t step, const sonde_amend_range *ranges, uint32_t count) {
    if (ranges == nullptr && count > 0) return missing_argument("amend");
    return with_writer(writer, "amend", [&] { return writer->amend(step, ranges, count); });
}

sonde_status sonde_begin_step(sonde_writer *writer, const sonde_range *ranges, uint32_t range_count,
                              const uint32_t *layouts, uint32_t layout_count, const sonde_ragged *ragged,
                              uint32_t ragged_count, uint64_t *step) {
    if (ranges == nullptr || (layouts == nullptr && layout_count > 0) || (ragged == nullptr && ragged_count > 0))
        return missing_argument("begin step");
    return with_writer(writer, "begin step", [&] {
        const sonde_status s = writer->begin_step(ranges, range_count, layouts, layout_count, ragged, ragged_count);
        if (s == SONDE_OK && step != nullptr) *step = writer->step().number;
        return s;
    });
}

uint32_t sonde_step_outcome(const sonde_writer *writer, uint32_t layout_index) {
    if (check_writer(writer, "read outcome") != SONDE_OK) return SONDE_DISABLED;
    const OpenStep &step = writer->step();
    return step.open && layout_index < step.count ? step.plans[layout_index].outcome : uint32_t{SONDE_DISABLED};
}

uint32_t sonde_step_rows(const sonde_writer *writer, uint32_t layout_index, uint32_t entry) {
    if (check_writer(writer, "read rows") != SONDE_OK) return 0;
    const OpenStep &step = writer->step();
    if (!step.open || layout_index >= step.count || entry >= step.plans[layout_index].layout->entries.size()) return 0;
    return static_cast<uint32_t>(step.plans[layout_index].rows(entry));
}

void *sonde_step_span(const sonde_writer *writer, uint32_t layout_index, uint32_t entry, uint64_t *bytes) {
    if (check_writer(writer, "find span") != SONDE_OK) {
        if (bytes != nullptr) *bytes = 0;
        return nullptr;
    }
    return writer->step_span(layout_index, entry, bytes);
}

sonde_status sonde_step_copy(sonde_writer *writer, const sonde_copy *copies, uint32_t count) {
    if (copies == nullptr && count > 0) return missing_argument("copy rows");
    return with_writer(writer, "copy rows", [&] { return writer->copy_rows(copies, count); });
}

sonde_status sonde_step_run(sonde_writer *writer, const sonde_range *ranges, uint32_t range_count,
                            const uint32_t *layouts, uint32_t layout_count, const sonde_copy *copies,
                            uint32_t copy_count, uint64_t *step) {
    if (ranges == nullptr || (layouts == nullptr && layout_count > 0) || (copies == nullptr && copy_count > 0))
        return missing_argument("run step");
    return with_writer(writer, "run step", [&] {
        const sonde_status s = writer->begin_step(ranges, range_count, layouts, layout_count, nullptr, 0);
        if (s != SONDE_OK) return s;
        if (step != nullptr) *step = writer->step().number;
        const sonde_status copied = writer->copy_rows(copies, copy_count);
        for (uint32_t i = 0; copied != SONDE_OK && i < layout_count; i++) (void)writer->abort_layout(i);
        const sonde_status committed = writer->commit_step(); // of a step that is open: it cannot fail
        return copied != SONDE_OK ? copied : committed;
    });
}

sonde_status sonde_step_abort(sonde_writer *writer, uint32_t layout_index) {
    return with_writer(writer, "abort layout", [&] { return writer->abort_layout(layout_index); });
}

sonde_status sonde_step_detach(sonde_writer *writer, uint32_t layout_index, sonde_pending **pending) {
    if (pending == nullptr) return missing_argument("detach layout");
    return with_writer(writer, "detach layout", [&] { return writer->detach(layout_index, pending); });
}

sonde_status sonde_commit_step(sonde_writer *writer) {
    return with_writer(writer, "commit step", [&] { return writer->commit_step(); });
}

void *sonde_pending_span(const sonde_pending *pending, uint32_t entry, uint64_t *bytes) {
    const bool there = pending != nullptr && entry < pending->entries;
    if (bytes != nullptr) *bytes = there ? pending->lengths[entry] : 0;
    return there ? pending->at + pending->offsets[entry] : nullptr;
}

// The writer lives as long as its last detached capture, so these need no check but that of the process.
void sonde_pending_commit(sonde_pending *pending) {
    if (pending == nullptr || pending->writer->generation() != fork_generation()) return;
    pending->writer->finish(pending, false);
}

void sonde_pending_abort(sonde_pending *pending) {
    if (pending == nullptr || pending->writer->generation() != fork_generation()) return;
    pending->writer->finish(pending, true);
}

} // extern "C"
