// What a writer does for its journal, and for the journals of writers that died.

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "fail.h"
#include "folder.h"
#include "writer.h"

using namespace sonde;

namespace {

constexpr size_t obituary_burst = 32;               // obituaries put under one hold of the lock
constexpr int obituary_bursts = 8;                  // in one tick
constexpr uint64_t rotate_retry_ns = 5'000'000'000; // after a segment could not be made

} // namespace

// Starts the journal of this epoch and takes over those of epochs whose writers are dead.
sonde_status sonde_writer::open_journal(const char *dir) {
    const std::string folder(text_of(dir));
    o_.journal_dir = nullptr; // the caller's text may go
    if (folder.empty()) return SONDE_OK;
    if (!make_folders(folder))
        return fail(SONDE_SYSTEM, "make journal folder %s: %s", folder.c_str(), std::strerror(errno));
    dead_ = std::make_unique<DeadQueue>(fork_guard_,
                                        [this](const std::string &text) { log(SONDE_LOG_WARN, text.c_str()); });
    if (const sonde_status s = dead_->collect(folder, config_.rank); s != SONDE_OK) return s;
    journal_ = std::make_unique<Journal>(fork_guard_, folder, config_.epoch, config_.rank);
    return journal_->open();
}

void sonde_writer::note_in_journal(const Control &record, uint16_t flags) {
    if (journal_ != nullptr)
        journal_->append(record.ordinal, core_->claim(), record.kind, flags, record.payload.data(),
                         record.payload.size());
}

void sonde_writer::note_in_journal(uint16_t kind, uint16_t flags, const Bytes &payload) {
    if (journal_ != nullptr)
        journal_->append(journal_->next_ordinal(), core_->claim(), kind, flags, payload.data(), payload.size());
}

// One tick of the journals, on the ticking thread.
void sonde_writer::tend_journal(bool take_over) {
    if (journal_ == nullptr) return;
    std::unique_lock<std::mutex> hold(lock_);
    const uint64_t release = core_->release(), claim = core_->claim();
    const std::vector<std::string> gone = journal_->settle(queue_.empty(), release, claim);
    const bool turn = journal_->full(alive_.bytes());
    hold.unlock();
    for (const std::string &path : gone)
        if (unlink(path.c_str()) != 0)
            log(SONDE_LOG_WARN, ("segment " + path + " of the journal stays: " + std::strerror(errno)).c_str());
    // The release word was read before retell was looked at, and a reader that attaches sets retell before it can
    // release anything: what was released then was released by a reader that was told all of it.
    if (retell_.exchange(false)) {
        dead_->retell();
    } else {
        dead_->released(release, claim);
    }
    if (turn && monotonic_ns() > rotate_after_ns_) rotate();
    if (take_over) dead_->take_over();
    for (int i = 0; i < obituary_bursts && tell_obituaries(); i++) {
    }
}

// Begins a new segment of the journal. What is alive is written without the lock; what began to live meanwhile is added
// with it.
void sonde_writer::rotate() {
    std::unique_lock<std::mutex> hold(lock_);
    const uint64_t since = core_->claim();
    const std::vector<AlivePointer> alive = alive_.published(since);
    hold.unlock();
    NewSegment made;
    if (journal_->next_segment(alive, &made) != SONDE_OK) {
        log(SONDE_LOG_WARN, last_failure());
        rotate_after_ns_ = monotonic_ns() + rotate_retry_ns;
        return;
    }
    hold.lock();
    journal_->begin(std::move(made));
    const uint64_t claim = core_->claim();
    for (const AlivePointer &r : alive_.published(since, claim))
        journal_->append(r->ordinal, r->seq, r->kind, 0, r->payload.data(), r->payload.size());
    for (const auto *list : {&queue_.opens, &queue_.ends})
        for (const Control &waiting : *list) note_in_journal(waiting, obituary_never_put);
}

// Puts some obituaries into the ring and says whether more could follow.
bool sonde_writer::tell_obituaries() {
    if (!attached() || retell_.load() || !dead_->ahead(obituary_burst)) return false;
    const std::lock_guard<std::mutex> hold(lock_);
    core_->refresh();
    if (closing_ || !flush()) return false;
    const uint64_t before = core_->claim();
    while (!dead_->empty() && tell_one()) {
    }
    if (core_->claim() != before) wake_reader();
    return dead_->empty();
}

// Puts the next obituary into the ring, or passes over one that never fits. false: there is no room for it now.
bool sonde_writer::tell_one() {
    encode_obituary(scratch_, dead_->front());
    const uint32_t why = core_->place_obituary(scratch_.size());
    if (why == SONDE_OVERSIZE) {
        obituaries_untold_++;
        dead_->sent(core_->claim(), false);
        return true;
    }
    if (why != SONDE_CAPTURED) return false;
    dead_->sent(core_->put_control(RING2_KIND_OBITUARY, 0, scratch_.data(), scratch_.size()), true);
    obituaries_sent_++;
    return true;
}

// Ends the journals once the background stands still.
void sonde_writer::end_journal(bool everything_released) {
    if (journal_ == nullptr) return;
    const std::lock_guard<std::mutex> hold(lock_);
    dead_->released(core_->release(), core_->claim());
    dead_.reset(); // what was not told or not released is the next writer's
    if (everything_released) journal_->remove();
    journal_.reset();
}

void sonde_writer::fill_journal_stats(sonde_journal_stats *stats) {
    const std::lock_guard<std::mutex> hold(lock_);
    *stats = sonde_journal_stats{};
    if (journal_ != nullptr) {
        stats->bytes = journal_->bytes();
        stats->unnamed = journal_->unnamed();
    }
    stats->obituaries_sent = obituaries_sent_;
    stats->obituaries_untold = obituaries_untold_;
}
