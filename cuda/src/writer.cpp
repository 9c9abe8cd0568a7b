#include "writer.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <initializer_list>

#include "background.h"
#include "fail.h"

using namespace sonde;

namespace {

constexpr int tick_ms = 5;
constexpr int busy_tick_ms = 1;       // while steps come
constexpr uint32_t busy_ticks = 100;  // after the last one
constexpr uint64_t patience = 8;      // the reader is woken at once when so large a part of the data waits for it
constexpr uint64_t prefault_step = 4U << 20, most_prefaulted = 256U << 20;
constexpr uint32_t sweep_every = 20;      // ticks between looks for stuck copies
constexpr uint32_t take_over_every = 100; // ticks between looks for writers that died
constexpr uint64_t close_every_ns = 1000000;
constexpr uint32_t largest_options = 4096; // of any version of the header

bool is_power(uint64_t n, uint64_t least, uint64_t most) { return std::has_single_bit(n) && n >= least && n <= most; }

} // namespace

sonde_status sonde_writer::check_options(const sonde_writer_options &options) {
    // The header grows at its end: what an older program does not have is 0, and a newer one may only leave at 0 what
    // we do not have.
    if (options.struct_bytes < offsetof(sonde_writer_options, journal_dir) || options.struct_bytes > largest_options)
        return fail(SONDE_INVALID, "open writer: struct_bytes is %u; set it to sizeof(sonde_writer_options)",
                    options.struct_bytes);
    const auto *given = reinterpret_cast<const uint8_t *>(&options);
    for (size_t i = sizeof o_; i < options.struct_bytes; i++)
        if (given[i] != 0)
            return fail(SONDE_INVALID, "open writer: an option at byte %zu is newer than this library; update it", i);
    std::memcpy(static_cast<void *>(&o_), given, std::min<size_t>(sizeof o_, options.struct_bytes));
    const auto set_default = [](auto &value, auto standard) {
        if (value == 0) value = standard;
    };
    set_default(o_.rank_count, 1U);
    set_default(o_.desc_count, uint64_t{4096});
    set_default(o_.data_bytes, uint64_t{64} << 20);
    set_default(o_.step_stall_budget_ns, uint64_t{50000000});
    set_default(o_.copy_timeout_ns, uint64_t{5000000000});
    set_default(o_.stall_limit, 8U);
    if (!is_power(o_.desc_count, 8, 1U << 20))
        return fail(SONDE_INVALID, "open writer: %llu descriptors; use a power of two from 8 to 1048576",
                    static_cast<unsigned long long>(o_.desc_count));
    if (!is_power(o_.data_bytes, 256U << 10, uint64_t{1} << 36))
        return fail(SONDE_INVALID, "open writer: %llu bytes of data; use a power of two from 262144 to 2^36",
                    static_cast<unsigned long long>(o_.data_bytes));
    if (o_.rank >= o_.rank_count || o_.rank_count > 1U << 16)
        return fail(SONDE_INVALID, "open writer: rank %u of %u", o_.rank, o_.rank_count);
    if (text_of(o_.engine_instance).size() >= sizeof config_.engine_instance)
        return fail(SONDE_INVALID, "open writer: engine instance has %zu bytes; at most 63",
                    text_of(o_.engine_instance).size());
    if (o_.mode > SONDE_COMPLETE) return fail(SONDE_INVALID, "open writer: mode %u does not exist", o_.mode);
    return SONDE_OK;
}

sonde_status sonde_writer::open(const sonde_writer_options &options, uint64_t start_seq, uint64_t start_pos) {
    if (const sonde_status s = check_options(options); s != SONDE_OK) return s;
    socket_ = text_of(options.socket);
    generation_ = fork_generation();
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed)
        return fail(SONDE_SYSTEM, "open writer: choose an epoch: %s", std::strerror(errno));
    config_.desc_count = o_.desc_count;
    config_.data_bytes = o_.data_bytes;
    config_.epoch = seed | 1;
    config_.reserve_descs = std::max<uint64_t>(2, o_.desc_count / 8);
    config_.reserve_bytes = o_.data_bytes / 16;
    config_.producer_pid = static_cast<uint32_t>(getpid());
    config_.rank = o_.rank;
    config_.rank_count = o_.rank_count;
    config_.mode = o_.mode;
    config_.step_stall_budget_ns = o_.step_stall_budget_ns;
    config_.wall_minus_mono_ns = wall_ns() - monotonic_ns();
    const std::string_view instance = text_of(o_.engine_instance);
    std::copy(instance.begin(), instance.end(), config_.engine_instance);
    if (const sonde_status s = memory_.make(o_.desc_count, o_.data_bytes); s != SONDE_OK) return s;
    stop_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (stop_fd_ < 0) return fail(SONDE_SYSTEM, "open writer: make eventfd: %s", std::strerror(errno));
    for (const int fd : {memory_.ctl_fd(), memory_.data_fd(), memory_.wake_fd(), stop_fd_}) fork_guard_.add(fd);
    const Ring ring(memory_.ctl(), memory_.ctl() + RING2_CONSUMER_OFF, memory_.data(), o_.desc_count, o_.data_bytes);
    core_ = std::make_unique<WriterCore>(ring, config_, monotonic_ns, start_seq, start_pos);
    core_->guard_data();
    scratch_.reserve(step_bytes(SONDE_MAX_STEP_LAYOUTS, SONDE_MAX_STEP_RANGES));
    free_pendings_.reserve(pendings_.size());
    for (sonde_pending &p : pendings_) {
        p.writer = this;
        free_pendings_.push_back(&p);
    }
    if (const sonde_status s = open_journal(o_.journal_dir); s != SONDE_OK) return s;
    ticking_ = start_background("sonde-tick", [this] { tick(); });
    if (!socket_.empty()) {
        connection_ = std::make_unique<Connection>(*this, socket_, stop_fd_);
        connecting_ = start_background("sonde-connect", [this] { connection_->run(); });
    }
    return SONDE_OK;
}

// Does what must go on while the engine is idle, until the writer stops.
void sonde_writer::tick() {
    pollfd stop{stop_fd_, POLLIN, 0};
    uint32_t n = 0;
    for (uint32_t quiet = busy_ticks, waited = 0; poll(&stop, 1, quiet < busy_ticks ? busy_tick_ms : tick_ms) <= 0;) {
        waited += quiet < busy_ticks ? busy_tick_ms : tick_ms;
        quiet = std::min(quiet + 1, busy_ticks);
        if (unannounced_.exchange(0, std::memory_order_relaxed) != 0) { // the lock of wake_reader orders what matters
            const std::lock_guard<std::mutex> hold(lock_);
            wake_reader();
            quiet = 0;
        }
        if (waited < tick_ms) continue;
        waited = 0;
        n++;
        try {
            tend(n % sweep_every == 0);
            tend_journal(n % take_over_every == 0);
        } catch (const std::exception &e) { // memory ran out: later there may be some
            log(SONDE_LOG_WARN, e.what());
        }
        prefault();
    }
}

// Makes a piece of the data's memory exist, so that no step of the first lap waits while the system clears pages.
void sonde_writer::prefault() {
    const uint64_t end = std::min(o_.data_bytes, most_prefaulted);
    if (prefaulted_ >= end) return;
    const uint64_t bytes = std::min(prefault_step, end - prefaulted_);
    // What fails, as on a kernel before 5.14, is made by who writes there first.
    prefaulted_ = memory_.populate(prefaulted_, bytes) ? prefaulted_ + bytes : end;
}

void sonde_writer::tend(bool sweep) {
    const std::lock_guard<std::mutex> hold(lock_);
    refresh();
    const uint64_t before = core_->claim();
    flush();
    bool news = core_->claim() != before;
    if (sweep && free_pendings_.size() < pendings_.size()) {
        news = core_->abort_stuck(core_->now() - o_.copy_timeout_ns) || news;
        core_->refresh();
    }
    core_->beat();
    if (news) wake_reader(); // else an idle reader would be woken by every tick
}

sonde_status sonde_writer::close(uint64_t timeout_ns) {
    {
        const std::lock_guard<std::mutex> hold(lock_);
        if (closing_) return SONDE_OK;
        closing_ = true;
    }
    uint64_t left = 0;
    const bool released = say_goodbye(timeout_ns, &left);
    stop_background();
    end_journal(left == 0);
    if (released || socket_.empty()) return SONDE_OK;
    return fail(SONDE_TIMEOUT, "close writer: the agent did not release %llu records in %llu ms",
                static_cast<unsigned long long>(left), static_cast<unsigned long long>(timeout_ns / 1000000));
}

void sonde_writer::stop_background() {
    const uint64_t one = 1;
    // An eventfd takes the write unless it is full, and then it is readable as well.
    [[maybe_unused]] const ssize_t n = write(stop_fd_, &one, sizeof one);
    if (connecting_.joinable()) connecting_.join();
    if (ticking_.joinable()) ticking_.join();
}

sonde_writer::~sonde_writer() {
    if (stop_fd_ < 0) return; // it was never opened
    stop_background();
    fork_guard_.close_now(stop_fd_);
}

// Puts the BYE and waits. left: how many records, waiting ones included, were not released.
bool sonde_writer::say_goodbye(uint64_t timeout_ns, uint64_t *left) {
    const uint64_t start = monotonic_ns();
    Control bye{RING2_KIND_BYE, 0, {}, nullptr, 0};
    for (bool said = false;;) {
        {
            const std::lock_guard<std::mutex> hold(lock_);
            refresh();
            if (!said && flush()) {
                core_->store_closing();
                said = put(bye);
            }
            wake_reader();
            *left = core_->claim() - core_->release() + queue_.records() + (said ? 0 : 1);
        }
        if (*left == 0) return true;
        if (socket_.empty() || monotonic_ns() - start >= timeout_ns) return false;
        sleep_ns(close_every_ns);
    }
}

void sonde_writer::leave() {
    // Acquire and release: whoever deletes the writer sees what the others have done with it.
    if (users_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

void sonde_writer::fill_stats(sonde_stats *stats) {
    const std::lock_guard<std::mutex> hold(lock_);
    core_->refresh();
    const Counters &c = core_->counters();
    *stats = sonde_stats{};
    stats->captured_rows = c.captured_rows;
    std::copy(c.dropped_rows.begin(), c.dropped_rows.end(), stats->dropped_rows);
    stats->aborted_rows = c.aborted_rows;
    stats->steps = c.steps;
    stats->claim = core_->claim();
    stats->release = core_->release();
    stats->stalls = stall_.stalls;
    stats->stall_ns = stall_.stall_ns;
    stats->exhausted_steps = stall_.exhausted;
    stats->refused_releases = c.refused_releases;
    stats->pending_control = queue_.records();
    stats->control_lost = queue_.lost;
    stats->unnamed_rows = queue_.missing.unnamed();
    stats->stuck_copies = c.stuck_copies;
    stats->quarantined_bytes = core_->quarantined_bytes();
    stats->detached = pendings_.size() - free_pendings_.size();
    stats->attaches = attaches_.load();
    stats->attached = attached_.load() ? 1 : 0;
}

std::vector<AlivePointer> sonde_writer::start_snapshot(uint64_t *release) {
    // The reader before this one is gone, and the new one starts with the end of the snapshot: in between nobody moves
    // the release word.
    const std::lock_guard<std::mutex> hold(lock_);
    retell_.store(true);
    core_->reset_reader();
    *release = core_->release();
    return alive_.snapshot(core_->release(), core_->claim());
}

uint8_t sonde_writer::answer_abort(uint64_t epoch, uint64_t expires_wall_ns, const sonde_abort_request &request,
                                   uint32_t *final_length) const {
    *final_length = 0;
    const bool expired = expires_wall_ns != 0 && expires_wall_ns < wall_ns();
    // It can only hit the request that it means: one of this epoch, before it expires, if it ever does.
    if (epoch != config_.epoch || expired || o_.on_abort == nullptr) return SONDE_ABORT_UNKNOWN;
    const uint8_t outcome = o_.on_abort(o_.on_abort_user, &request, final_length);
    return outcome <= SONDE_ABORT_FINISHED ? outcome : uint8_t{SONDE_ABORT_UNKNOWN};
}

void sonde_writer::set_attached(bool attached) {
    if (attached) attaches_.fetch_add(1);
    attached_.store(attached);
}

void sonde_writer::log(int32_t level, const char *text) const {
    if (o_.on_log != nullptr) o_.on_log(o_.on_log_user, level, text);
}

void sonde_writer::refresh() {
    core_->refresh();
    alive_.prune(core_->release(), core_->claim());
}

void sonde_writer::wake_reader() {
    if (core_->take_wake_request()) memory_.wake();
}

// Lets the ticking thread wake the reader, within a millisecond while steps come: on the model's thread the call would
// cost more than the copy of a small step, and the system likes to run whom it wakes on the core of who woke it.
void sonde_writer::wake_reader_soon(uint64_t bytes) {
    if (unannounced_.fetch_add(bytes + 1, std::memory_order_relaxed) + bytes < o_.data_bytes / patience) return;
    unannounced_.store(0, std::memory_order_relaxed);
    wake_reader();
}
