#include "lift.h"

#include <algorithm>

#include "background.h"

namespace sonde {

namespace {

constexpr uint32_t spins_before_nap = 2000;
constexpr uint64_t nap_ns = 50000;

// A commit is written for an armed capture only, so that no slot is written again before it was lifted.
static_assert(commit_slots >= 2 * SONDE_MAX_DETACHED);

} // namespace

void CaptureShape::measure(const Layout &layout, uint64_t token_rows, uint64_t sampled_rows) {
    total = 0;
    for (size_t e = 0; e < layout.entries.size(); e++) {
        const bool sampled = layout.entries[e].select == SONDE_SELECT_SAMPLED;
        offsets[e] = total;
        bytes[e] = (sampled ? sampled_rows : token_rows) * layout.entries[e].row_bytes;
        total += align_up(bytes[e]);
    }
}

Lift::Lift(const DeviceRing &ring, DeviceTail *tail, const Layout &layout, int cuda_device)
    : ring_(ring), tail_(tail), layout_(layout), cuda_device_(cuda_device), shape_(layout.entries.size()) {}

Lift::~Lift() {
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_); // nothing is left to do about an error
    if (staged_tail_ != nullptr) (void)cudaFreeHost(staged_tail_);
}

cudaError_t Lift::start() {
    cudaError_t e = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
    if (e == cudaSuccess)
        e = cudaHostAlloc(reinterpret_cast<void **>(&staged_tail_), sizeof *staged_tail_, cudaHostAllocDefault);
    if (e == cudaSuccess) thread_ = start_background("sonde-lift", [this] { run(); });
    return e;
}

void Lift::stop() {
    stop_.store(true);
    if (thread_.joinable()) thread_.join();
    abort_everything();
}

bool Lift::push(const Armed &armed) {
    const std::lock_guard<std::mutex> hold(lock_);
    if (end_ - first_ >= queue_.size()) return false;
    queue_[end_++ % queue_.size()] = armed;
    armed_.fetch_add(1);
    return true;
}

sonde_pending *Lift::take_back(uint64_t tag) {
    const std::lock_guard<std::mutex> hold(lock_);
    if (end_ == first_ || queue_[(end_ - 1) % queue_.size()].tag != tag) return nullptr;
    armed_.fetch_sub(1);
    return queue_[--end_ % queue_.size()].pending;
}

bool Lift::idle() {
    const std::lock_guard<std::mutex> hold(lock_);
    return first_ == end_;
}

void Lift::fail_with(cudaError_t error) {
    int none = 0;
    error_.compare_exchange_strong(none, static_cast<int>(error));
}

void Lift::fill(sonde_device_stats *stats) const {
    stats->armed = armed_.load();
    stats->lifted = lifted_.load();
    stats->aborted = aborted_.load();
    stats->full = full_.load();
    stats->copies = copies_.load();
    stats->bytes = bytes_.load();
    stats->cuda_error = error_.load();
    stats->unarmed = shared(ring_.host->unarmed).load(std::memory_order_relaxed);
}

void Lift::run() {
    // Another thread may be recording a graph in the global mode, in which our calls would break it.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    cudaError_t e = cudaThreadExchangeStreamCaptureMode(&mode);
    if (e == cudaSuccess) e = cudaSetDevice(cuda_device_);
    if (e != cudaSuccess) fail_with(e);
    for (uint32_t spins = 0; !stop_.load();) {
        if (error() != cudaSuccess) abort_everything();
        if (take() > 0) {
            spins = 0;
        } else if (++spins > spins_before_nap) {
            sleep_ns(nap_ns);
        }
    }
}

// Lifts what is committed, at most a burst, and says how many captures that was. Nothing is published before the
// copies' return codes and the stream's are known.
size_t Lift::take() {
    if (error() != cudaSuccess) return 0;
    // Pairs with store_release_system in gather.cu: whoever sees the count sees the commits, and the captures in the
    // ring.
    const uint64_t committed = shared(ring_.host->committed).load(std::memory_order_acquire);
    const size_t count = static_cast<size_t>(std::min<uint64_t>(committed - seen_, burst));
    cudaError_t e = cudaSuccess;
    for (size_t i = 0; i < count; i++) {
        commits_[i] = ring_.host->commits[(seen_ + i) % commit_slots];
        pendings_[i] = owed(commits_[i].tag);
        full_.fetch_add(commits_[i].refused);
        if (pendings_[i] == nullptr) continue;
        if (commits_[i].refused != 0 || !covers(commits_[i], *pendings_[i])) {
            abort(pendings_[i]);
            pendings_[i] = nullptr;
        } else if (e == cudaSuccess) {
            e = copy(ring_.base + (commits_[i].pos & ring_.mask), *pendings_[i]);
        }
    }
    if (count == 0) return 0;
    seen_ += count;
    if (e == cudaSuccess) e = give_back(commits_[count - 1]);
    // Also after an error: a copy that was started must not land in a span that was given up.
    if (const cudaError_t sync = cudaStreamSynchronize(stream_); e == cudaSuccess) e = sync;
    if (e != cudaSuccess) fail_with(e);
    for (size_t i = 0; i < count; i++) {
        if (pendings_[i] == nullptr) continue;
        if (e != cudaSuccess) {
            abort(pendings_[i]);
            continue;
        }
        sonde_pending_commit(pendings_[i]);
        lifted_.fetch_add(1);
    }
    return count;
}

// The capture with this tag. Those before it were armed, and their gather never ran: they are aborted.
sonde_pending *Lift::owed(uint64_t tag) {
    const std::lock_guard<std::mutex> hold(lock_);
    for (; first_ != end_ && queue_[first_ % queue_.size()].tag < tag; first_++)
        abort(queue_[first_ % queue_.size()].pending);
    if (first_ == end_ || queue_[first_ % queue_.size()].tag != tag) return nullptr;
    return queue_[first_++ % queue_.size()].pending;
}

// Whether a gather holds at least the rows of its step. It may hold more (padding). shape_ is then the gather's.
bool Lift::covers(const DeviceCommit &commit, const sonde_pending &pending) {
    shape_.measure(layout_, commit.token_rows, commit.sampled_rows);
    for (size_t i = 0; i < pending.entries; i++)
        if (pending.lengths[i] > shape_.bytes[i]) return false;
    return true;
}

// Starts the copies of one capture: a single one when the gather has exactly the step's rows.
cudaError_t Lift::copy(const char *from, const sonde_pending &pending) {
    const auto entries = static_cast<std::ptrdiff_t>(pending.entries);
    if (!std::equal(shape_.bytes.begin(), shape_.bytes.end(), pending.lengths.begin(),
                    pending.lengths.begin() + entries))
        return copy_runs(from, pending.at, pending);
    copies_.fetch_add(1);
    bytes_.fetch_add(shape_.total);
    return cudaMemcpyAsync(pending.at, from, shape_.total, cudaMemcpyDeviceToHost, stream_);
}

// Entries that follow one another with equal sizes on both sides are one copy of two dimensions.
cudaError_t Lift::copy_runs(const char *from, uint8_t *to, const sonde_pending &pending) {
    for (size_t first = 0, end = 0; first < pending.entries; first = end) {
        for (end = first + 1; end < pending.entries && pending.lengths[end] == pending.lengths[first] &&
                              shape_.bytes[end] == shape_.bytes[first];)
            end++;
        const size_t width = pending.lengths[first], height = end - first;
        if (width == 0) continue;
        const cudaError_t e =
            cudaMemcpy2DAsync(to + pending.offsets[first], align_up(width), from + shape_.offsets[first],
                              align_up(shape_.bytes[first]), width, height, cudaMemcpyDeviceToHost, stream_);
        if (e != cudaSuccess) return e;
        copies_.fetch_add(1);
        bytes_.fetch_add(width * height);
    }
    return cudaSuccess;
}

// Frees the ring up to a commit, behind the copies on the same stream.
cudaError_t Lift::give_back(const DeviceCommit &last) {
    *staged_tail_ = DeviceTail{last.end};
    return cudaMemcpyAsync(tail_, staged_tail_, sizeof *staged_tail_, cudaMemcpyHostToDevice, stream_);
}

void Lift::abort(sonde_pending *pending) {
    sonde_pending_abort(pending);
    aborted_.fetch_add(1);
}

void Lift::abort_everything() {
    const std::lock_guard<std::mutex> hold(lock_);
    for (; first_ != end_; first_++) abort(queue_[first_ % queue_.size()].pending);
}

} // namespace sonde
