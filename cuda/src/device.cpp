// The device ring behind the C interface: taps, gathers and their arming. Every return code of CUDA is looked at; after
// the first error the ring takes nothing more, and its captures are aborted.

#include <bit>
#include <cstring>
#include <memory>
#include <new>

#include "fail.h"
#include "lift.h"

using namespace sonde;

struct sonde_device {
    sonde_writer *writer = nullptr;
    const Layout *layout = nullptr;
    int cuda_device = 0;
    uint64_t ring_bytes = 0;
    DeviceRing ring{};
    DeviceTail *tail = nullptr;
    bool pinned = false;
    cudaStream_t side = nullptr; // one fixed stream, never of a pool
    cudaEvent_t forked = nullptr, joined = nullptr;
    std::unique_ptr<Lift> lift;

    bool planned = false, early = false; // early: the side stream has work of this plan
    GatherStep step{};
    std::unique_ptr<CaptureShape> shape;
    std::vector<GatherEntry> waiting; // tapped, not gathered
    std::vector<bool> tapped;
    uint32_t taps = 0;
    uint64_t last_tag = 0;
};

namespace {

constexpr uint64_t least_ring = 1U << 20;

// Makes a device the current one, and the one before it again.
class CurrentDevice {
public:
    explicit CurrentDevice(int device) {
        error_ = cudaGetDevice(&before_);
        if (error_ == cudaSuccess && before_ != device) error_ = cudaSetDevice(device);
        changed_ = error_ == cudaSuccess && before_ != device;
    }
    ~CurrentDevice() {
        if (changed_) (void)cudaSetDevice(before_); // it was current before
    }
    CurrentDevice(const CurrentDevice &) = delete;
    CurrentDevice &operator=(const CurrentDevice &) = delete;
    cudaError_t error() const { return error_; }

private:
    int before_ = 0;
    bool changed_ = false;
    cudaError_t error_ = cudaSuccess;
};

sonde_status cuda_failure(const char *what, cudaError_t e) {
    return fail(SONDE_CUDA, "%s: %s (CUDA error %d)", what, cudaGetErrorString(e), static_cast<int>(e));
}

// Notes an error of a call on the owner's thread.
sonde_status broken(sonde_device *d, const char *what, cudaError_t e) {
    d->lift->fail_with(e);
    return cuda_failure(what, e);
}

sonde_status check_device(const sonde_device *d, const char *what) {
    if (d == nullptr) return fail(SONDE_INVALID, "%s: the device ring is NULL", what);
    if (d->writer->generation() != fork_generation())
        return fail(SONDE_FORKED, "%s: the device ring belongs to the parent process", what);
    return SONDE_OK;
}

cudaError_t zeroed(void **at, size_t bytes) {
    const cudaError_t e = cudaMalloc(at, bytes);
    return e == cudaSuccess ? cudaMemset(*at, 0, bytes) : e;
}

// Pins the writer's data once, for all device rings of the writer.
cudaError_t pin(sonde_device *d) {
    uint32_t &pins = d->writer->pins();
    if (pins == 0) {
        const RingMemory &m = d->writer->memory();
        const cudaError_t e = cudaHostRegister(m.data(), m.data_bytes(), cudaHostRegisterPortable);
        if (e != cudaSuccess) return e;
    }
    pins++;
    d->pinned = true;
    return cudaSuccess;
}

cudaError_t allocate(sonde_device *d) {
    cudaError_t e = cudaMalloc(reinterpret_cast<void **>(&d->ring.base), d->ring_bytes);
    if (e == cudaSuccess) e = zeroed(reinterpret_cast<void **>(&d->ring.head), sizeof *d->ring.head);
    if (e == cudaSuccess) e = zeroed(reinterpret_cast<void **>(&d->tail), sizeof *d->tail);
    if (e == cudaSuccess)
        e = cudaHostAlloc(reinterpret_cast<void **>(&d->ring.host), sizeof *d->ring.host,
                          cudaHostAllocMapped | cudaHostAllocPortable);
    if (e != cudaSuccess) return e;
    std::memset(static_cast<void *>(d->ring.host), 0, sizeof *d->ring.host);
    d->ring.tail = d->tail;
    d->ring.mask = d->ring_bytes - 1;
    if (e == cudaSuccess) e = cudaDeviceSynchronize(); // the zeros are there
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&d->side, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaEventCreateWithFlags(&d->forked, cudaEventDisableTiming);
    if (e == cudaSuccess) e = cudaEventCreateWithFlags(&d->joined, cudaEventDisableTiming);
    return e == cudaSuccess ? pin(d) : e;
}

// Gives everything back and returns the first error.
cudaError_t release(sonde_device *d) {
    cudaError_t first = cudaDeviceSynchronize(); // no gather runs any more
    const auto note = [&first](cudaError_t e) {
        if (first == cudaSuccess) first = e;
    };
    d->lift.reset();
    if (d->pinned && --d->writer->pins() == 0) note(cudaHostUnregister(d->writer->memory().data()));
    if (d->forked != nullptr) note(cudaEventDestroy(d->forked));
    if (d->joined != nullptr) note(cudaEventDestroy(d->joined));
    if (d->side != nullptr) note(cudaStreamDestroy(d->side));
    note(cudaFree(d->ring.base));
    note(cudaFree(d->ring.head));
    note(cudaFree(d->tail));
    note(cudaFreeHost(d->ring.host));
    return first;
}

sonde_status check_options(const sonde_writer *writer, const sonde_device_options &o, uint64_t ring_bytes) {
    if (o.struct_bytes < sizeof o)
        return fail(SONDE_INVALID, "open device: set struct_bytes to sizeof(sonde_device_options)");
    if (!std::has_single_bit(ring_bytes) || ring_bytes < least_ring || ring_bytes > uint64_t{1} << 36)
        return fail(SONDE_INVALID, "open device: a ring of %llu bytes; use a power of two from 1 MiB to 64 GiB",
                    static_cast<unsigned long long>(ring_bytes));
    const Layout *l = writer->layout(o.layout);
    if (l == nullptr) return fail(SONDE_INVALID, "open device: layout %u is not defined", o.layout);
    if (l->ragged || l->entries.size() > max_taps)
        return fail(SONDE_INVALID, "open device: layout %u has ragged entries or more than %u", o.layout, max_taps);
    return SONDE_OK;
}

sonde_status open_device(sonde_writer *writer, const sonde_device_options &o, sonde_device **out) {
    const uint64_t ring_bytes = o.ring_bytes == 0 ? uint64_t{256} << 20 : o.ring_bytes;
    if (const sonde_status s = check_options(writer, o, ring_bytes); s != SONDE_OK) return s;
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0)
        return fail(SONDE_UNSUPPORTED, "open device: no CUDA device is there");
    auto d = std::make_unique<sonde_device>();
    d->cuda_device = o.cuda_device;
    if (o.cuda_device < 0)
        if (const cudaError_t e = cudaGetDevice(&d->cuda_device); e != cudaSuccess)
            return cuda_failure("open device", e);
    const CurrentDevice current(d->cuda_device);
    if (current.error() != cudaSuccess) return cuda_failure("open device", current.error());
    d->writer = writer;
    d->layout = writer->layout(o.layout);
    d->ring_bytes = ring_bytes;
    d->shape = std::make_unique<CaptureShape>(d->layout->entries.size());
    d->waiting.reserve(d->layout->entries.size());
    d->tapped.resize(d->layout->entries.size());
    cudaError_t e = allocate(d.get());
    if (e == cudaSuccess) {
        d->lift = std::make_unique<Lift>(d->ring, d->tail, *d->layout, d->cuda_device);
        e = d->lift->start();
    }
    if (e != cudaSuccess) {
        (void)release(d.get()); // the first error says more
        return cuda_failure("open device", e);
    }
    *out = d.release();
    return SONDE_OK;
}

cudaError_t gather(sonde_device *d, bool last, cudaStream_t stream) {
    GatherStep step = d->step;
    step.last = last;
    const cudaError_t e =
        launch_gather(d->ring, step, d->waiting.data(), static_cast<uint32_t>(d->waiting.size()), stream);
    d->waiting.clear();
    return e;
}

cudaError_t join(sonde_device *d, cudaStream_t stream) {
    if (!d->early) return cudaSuccess; // nothing is on the side stream
    const cudaError_t e = cudaEventRecord(d->joined, d->side);
    return e == cudaSuccess ? cudaStreamWaitEvent(stream, d->joined, 0) : e;
}

} // namespace

extern "C" {

int32_t sonde_has_cuda(void) { return 1; }

sonde_status sonde_device_open(sonde_writer *writer, const sonde_device_options *options, sonde_device **device) {
    if (writer == nullptr || options == nullptr || device == nullptr)
        return fail(SONDE_INVALID, "open device: an argument is NULL");
    *device = nullptr;
    if (writer->generation() != fork_generation())
        return fail(SONDE_FORKED, "open device: the writer belongs to the parent process");
    try {
        return open_device(writer, *options, device);
    } catch (const std::exception &e) {
        return fail(SONDE_SYSTEM, "open device: %s", e.what());
    }
}

sonde_status sonde_device_plan(sonde_device *d, uint32_t token_rows, uint32_t sampled_rows) {
    if (const sonde_status s = check_device(d, "plan gather"); s != SONDE_OK) return s;
    d->planned = false;
    d->shape->measure(*d->layout, token_rows, sampled_rows);
    if (d->shape->total == 0 || d->shape->total > d->ring_bytes / 2)
        return fail(SONDE_INVALID, "plan gather: %llu bytes; want 1 to half of the device ring's %llu",
                    static_cast<unsigned long long>(d->shape->total), static_cast<unsigned long long>(d->ring_bytes));
    d->step = GatherStep{d->shape->total, token_rows, sampled_rows, false};
    d->waiting.clear();
    d->tapped.assign(d->tapped.size(), false);
    d->taps = 0;
    d->early = false;
    d->planned = true;
    return SONDE_OK;
}

sonde_status sonde_device_tap(sonde_device *d, uint32_t entry, const void *rows, uint64_t bytes) {
    if (const sonde_status s = check_device(d, "tap"); s != SONDE_OK) return s;
    if (!d->planned) return fail(SONDE_STATE, "tap: plan the gather first");
    if (entry >= d->tapped.size() || d->tapped[entry])
        return fail(SONDE_INVALID, "tap: entry %u does not exist or was tapped already", entry);
    if (bytes != d->shape->bytes[entry] || bytes > UINT32_MAX)
        return fail(SONDE_INVALID, "tap: entry %u has %llu bytes; the plan says %llu, and at most 4 GiB", entry,
                    static_cast<unsigned long long>(bytes), static_cast<unsigned long long>(d->shape->bytes[entry]));
    const auto src = reinterpret_cast<uint64_t>(rows);
    if ((src == 0 && bytes > 0) || src % 16 != 0)
        return fail(SONDE_INVALID, "tap: entry %u lies at %p; want a multiple of 16", entry, rows);
    d->tapped[entry] = true;
    d->taps++;
    d->waiting.push_back({src, static_cast<uint32_t>(d->shape->offsets[entry] / 16), static_cast<uint32_t>(bytes)});
    return SONDE_OK;
}

sonde_status sonde_device_taps(sonde_device *d, const sonde_tap *taps, uint32_t count) {
    if (taps == nullptr && count > 0) return fail(SONDE_INVALID, "tap: an argument is NULL");
    for (uint32_t i = 0; i < count; i++)
        if (const sonde_status s = sonde_device_tap(d, taps[i].entry, taps[i].rows, taps[i].bytes); s != SONDE_OK)
            return s;
    return SONDE_OK;
}

sonde_status sonde_device_gather_early(sonde_device *d, void *stream) {
    if (const sonde_status s = check_device(d, "gather early"); s != SONDE_OK) return s;
    if (!d->planned) return fail(SONDE_STATE, "gather early: plan the gather first");
    if (d->waiting.empty()) return SONDE_OK;
    const CurrentDevice current(d->cuda_device);
    cudaError_t e = current.error();
    if (e == cudaSuccess) e = cudaEventRecord(d->forked, static_cast<cudaStream_t>(stream));
    if (e == cudaSuccess) e = cudaStreamWaitEvent(d->side, d->forked, 0);
    d->early = true;
    if (e == cudaSuccess) e = gather(d, false, d->side);
    return e == cudaSuccess ? SONDE_OK : broken(d, "gather early", e);
}

sonde_status sonde_device_join(sonde_device *d, void *stream) {
    if (const sonde_status s = check_device(d, "join"); s != SONDE_OK) return s;
    const CurrentDevice current(d->cuda_device);
    const cudaError_t e = current.error() == cudaSuccess ? join(d, static_cast<cudaStream_t>(stream)) : current.error();
    return e == cudaSuccess ? SONDE_OK : broken(d, "join", e);
}

sonde_status sonde_device_gather(sonde_device *d, void *stream) {
    if (const sonde_status s = check_device(d, "gather"); s != SONDE_OK) return s;
    if (!d->planned || d->taps != d->tapped.size())
        return fail(SONDE_STATE, "gather: %u of %zu entries were tapped", d->planned ? d->taps : 0, d->tapped.size());
    const CurrentDevice current(d->cuda_device);
    cudaError_t e = current.error();
    if (e == cudaSuccess) e = join(d, static_cast<cudaStream_t>(stream));
    if (e == cudaSuccess) e = gather(d, true, static_cast<cudaStream_t>(stream));
    d->planned = false;
    return e == cudaSuccess ? SONDE_OK : broken(d, "gather", e);
}

sonde_status sonde_device_arm(sonde_device *d, uint32_t layout_index, void *stream) {
    if (const sonde_status s = check_device(d, "arm"); s != SONDE_OK) return s;
    const OpenStep &step = d->writer->step();
    if (!step.open) return fail(SONDE_STATE, "arm: no step is open");
    if (layout_index >= step.count || step.plans[layout_index].layout != d->layout)
        return fail(SONDE_INVALID, "arm: layout index %u is not the device ring's layout %u", layout_index,
                    d->layout->id);
    if (d->lift->error() != cudaSuccess) {
        (void)d->writer->abort_layout(layout_index); // the step is open and has the index
        return cuda_failure("arm", d->lift->error());
    }
    const CurrentDevice current(d->cuda_device);
    sonde_pending *pending = nullptr;
    if (const sonde_status s = d->writer->detach(layout_index, &pending); s != SONDE_OK) {
        (void)d->writer->abort_layout(layout_index);
        return s;
    }
    if (pending == nullptr) return SONDE_OK; // dropped: the gather runs unarmed
    const uint64_t tag = ++d->last_tag;
    if (!d->lift->push({tag, pending})) {
        sonde_pending_abort(pending);
        return fail(SONDE_FULL, "arm: %u captures wait for their gathers", SONDE_MAX_DETACHED);
    }
    cudaError_t e = current.error();
    if (e == cudaSuccess) e = launch_arm(d->ring, tag, static_cast<cudaStream_t>(stream));
    if (e == cudaSuccess) return SONDE_OK;
    sonde_pending_abort(d->lift->take_back(tag));
    return broken(d, "arm", e);
}

sonde_status sonde_device_get_stats(sonde_device *d, sonde_device_stats *stats) {
    if (const sonde_status s = check_device(d, "read statistics"); s != SONDE_OK) return s;
    if (stats == nullptr) return fail(SONDE_INVALID, "read statistics: an argument is NULL");
    *stats = sonde_device_stats{};
    d->lift->fill(stats);
    stats->device_bytes = d->ring_bytes + sizeof(DeviceHead) + sizeof(DeviceTail);
    stats->pinned_bytes = d->writer->memory().data_bytes() + sizeof(HostWords) + sizeof(DeviceTail);
    return SONDE_OK;
}

sonde_status sonde_device_close(sonde_device *d, uint64_t timeout_ns) {
    if (d == nullptr) return SONDE_OK;
    if (const sonde_status s = check_device(d, "close device"); s != SONDE_OK) return s;
    const uint64_t start = monotonic_ns();
    while (!d->lift->idle() && d->lift->error() == cudaSuccess && monotonic_ns() - start < timeout_ns) sleep_ns(100000);
    const bool done = d->lift->idle();
    const CurrentDevice current(d->cuda_device);
    d->lift->stop();
    cudaError_t e = d->lift->error();
    if (const cudaError_t freed = release(d); e == cudaSuccess) e = freed;
    delete d;
    if (e != cudaSuccess) return cuda_failure("close device", e);
    return done ? SONDE_OK : fail(SONDE_TIMEOUT, "close device: some armed captures had no gather in time");
}

} // extern "C"
