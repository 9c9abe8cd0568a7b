// The writer behind the C interface. One thread owns its steps and announcements; the lock is for the background
// threads, which flush what waits, sweep stuck copies and serve the agent, and for detached captures.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "connection.h"
#include "core.h"
#include "dead.h"
#include "fork.h"
#include "journal.h"
#include "memory.h"
#include "queue.h"

namespace sonde {

// What the commit does with a capture.
enum class Fate : uint8_t { commit, abort, detached };

// The open step, of the owner alone.
struct OpenStep {
    bool open = false;
    bool named = false; // its STEP record fits
    uint64_t number = 0, pos = 0;
    uint32_t count = 0; // of layouts
    std::array<Plan, SONDE_MAX_STEP_LAYOUTS> plans;
    std::array<StepLayout, SONDE_MAX_STEP_LAYOUTS> layouts;
    std::array<Fate, SONDE_MAX_STEP_LAYOUTS> fates{};
    std::array<size_t, SONDE_MAX_STEP_LAYOUTS> first{}; // of each plan, index in offsets
    std::vector<uint64_t> offsets, lengths;             // of the entries of all plans in their captures
};

// Decides whether a step in mode complete may wait.
struct StallRule {
    uint32_t row = 0;        // exhausted steps in a row
    uint64_t stopped_at = 0; // release word when the last of them ended
    uint64_t stalls = 0, stall_ns = 0, exhausted = 0;

    bool may_wait(uint32_t limit, uint64_t release) {
        if (row >= limit && release != stopped_at) row = 0;
        return row < limit;
    }
    void note(uint64_t waited_ns, bool was_exhausted, uint64_t release) {
        stalls++;
        stall_ns += waited_ns;
        if (!was_exhausted) {
            row = 0;
            return;
        }
        row++;
        exhausted++;
        stopped_at = release;
    }
};

} // namespace sonde

// A detached capture. copy belongs to the writer's lock, the rest to whoever holds the handle.
struct sonde_pending {
    sonde_writer *writer = nullptr;
    sonde::Copy copy;
    uint8_t *at = nullptr; // whole payload
    size_t entries = 0;
    std::vector<uint64_t> offsets, lengths; // of the entries
};

struct sonde_writer {
    sonde_writer() = default;
    ~sonde_writer();
    sonde_writer(const sonde_writer &) = delete;
    sonde_writer &operator=(const sonde_writer &) = delete;

    // Checks the options and starts the ring and its threads. Tests start near the end of the ranges of seq and
    // position.
    sonde_status open(const sonde_writer_options &options, uint64_t start_seq, uint64_t start_pos);
    sonde_status close(uint64_t timeout_ns);
    // Lets one user go; the last one deletes the writer.
    void leave();

    sonde_status set_model(const sonde_model &model);
    sonde_status define_layout(const sonde_layout_entry *entries, uint32_t count, uint32_t *layout);
    sonde_status open_request(const sonde_request &request);
    sonde_status end_request(const sonde_request_end &end);
    sonde_status amend(uint64_t step, const sonde_amend_range *ranges, uint32_t count);

    sonde_status begin_step(const sonde_range *ranges, uint32_t range_count, const uint32_t *layouts,
                            uint32_t layout_count, const sonde_ragged *ragged, uint32_t ragged_count);
    sonde_status commit_step();
    sonde_status detach(uint32_t layout_index, sonde_pending **pending);
    void finish(sonde_pending *pending, bool aborted);
    sonde_status copy_rows(const sonde_copy *copies, uint32_t count) const;
    void *step_span(uint32_t layout_index, uint32_t entry, uint64_t *bytes) const;

    void fill_stats(sonde_stats *stats);
    void fill_journal_stats(sonde_journal_stats *stats);
    const sonde::OpenStep &step() const { return step_; }
    sonde_status abort_layout(uint32_t layout_index);
    const sonde::Layout *layout(uint32_t id) const { return id < layouts_.size() ? layouts_[id].get() : nullptr; }
    uint64_t epoch() const { return config_.epoch; }
    uint64_t generation() const { return generation_; }
    const sonde::Ring &ring() const { return core_->ring(); }
    const sonde::RingMemory &memory() const { return memory_; }
    uint32_t &pins() { return pins_; } // device rings that need the data pinned; of the owner

    // Of the connection's thread.
    std::vector<sonde::AlivePointer> start_snapshot(uint64_t *release);
    uint8_t answer_abort(uint64_t epoch, uint64_t expires_wall_ns, const sonde_abort_request &request,
                         uint32_t *final_length) const;
    void set_attached(bool attached);
    bool attached() const { return attached_.load(); }
    void log(int32_t level, const char *text) const;
    sonde::ForkGuard &fork_guard() { return fork_guard_; }

private:
    sonde_status check_options(const sonde_writer_options &options);
    void reserve_entries(size_t entries);
    void stop_background();
    void tick();
    void tend(bool sweep);
    bool say_goodbye(uint64_t timeout_ns, uint64_t *left);
    sonde_status control(sonde::Control &&record);
    bool put(sonde::Control &record);
    sonde_status open_journal(const char *dir);
    void note_in_journal(const sonde::Control &record, uint16_t flags);
    void note_in_journal(uint16_t kind, uint16_t flags, const sonde::Bytes &payload);
    void tend_journal(bool take_over);
    void rotate();
    bool tell_obituaries();
    bool tell_one();
    void end_journal(bool everything_released);
    void note_put(const sonde::Control &record, uint64_t seq);
    bool flush();
    bool flush_list(std::deque<sonde::Control> &list);
    bool flush_missing();
    void refresh();
    void wake_reader();
    void wake_reader_soon(uint64_t bytes);
    void prefault();
    sonde_status plan(const sonde_range *ranges, uint32_t range_count, const uint32_t *layouts, uint32_t layout_count,
                      const sonde_ragged *ragged, uint32_t ragged_count);
    void measure(sonde::Plan &plan, uint32_t index, const sonde_range *ranges, uint32_t range_count,
                 const sonde_ragged *ragged, uint32_t ragged_count);
    bool try_step(uint32_t range_count);
    void wait_for_room(std::unique_lock<std::mutex> &lock, uint32_t range_count);
    void write_ragged_tables();
    void clear_gaps();

    sonde_writer_options o_{};
    std::string socket_;
    ring2_config config_{};
    uint64_t generation_ = 0;
    sonde::RingMemory memory_;
    sonde::ForkGuard fork_guard_; // goes before what it guards
    int stop_fd_ = -1;            // readable once the background must end

    std::mutex lock_; // of everything below up to closing_
    std::unique_ptr<sonde::WriterCore> core_;
    sonde::ControlQueue queue_;
    sonde::AliveTable alive_;
    sonde::Bytes scratch_; // the record being encoded
    sonde::StallRule stall_;
    std::unique_ptr<sonde::Journal> journal_; // null: none is kept
    uint64_t obituaries_sent_ = 0, obituaries_untold_ = 0;
    std::array<sonde_pending, SONDE_MAX_DETACHED> pendings_;
    std::vector<sonde_pending *> free_pendings_;
    bool closing_ = false; // nothing new is taken

    // Bytes of captures for which the ticking thread has yet to wake the reader.
    std::atomic<uint64_t> unannounced_{0};
    uint64_t prefaulted_ = 0; // bytes of data; of the ticking thread

    std::unique_ptr<sonde::DeadQueue> dead_; // of the ticking thread; null without a journal
    uint64_t rotate_after_ns_ = 0;           // of the ticking thread
    std::atomic<bool> retell_{false}; // a reader attached: it is told the journals of dead writers from the start

    std::vector<std::unique_ptr<sonde::Layout>> layouts_; // of the owner
    size_t most_entries_ = 0;                             // of a layout
    sonde::OpenStep step_;
    uint64_t next_step_ = 0;
    uint32_t pins_ = 0;

    std::atomic<bool> attached_{false};
    std::atomic<uint64_t> attaches_{0};
    std::atomic<uint32_t> users_{1}; // the handle, and each detached capture
    std::unique_ptr<sonde::Connection> connection_;
    std::thread ticking_, connecting_;
};
