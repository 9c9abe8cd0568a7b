// The lift thread: waits for commits of the device, copies their captures into the writer's pinned ring and publishes
// them.
#pragma once

#include <array>
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "gather.h"
#include "writer.h"

namespace sonde {

// A capture that a gather owes us.
struct Armed {
    uint64_t tag = 0;
    sonde_pending *pending = nullptr;
};

// Bytes of the entries of one capture when each selects so many rows, and where they lie in it.
struct CaptureShape {
    std::vector<uint64_t> offsets, bytes;
    uint64_t total = 0;

    explicit CaptureShape(size_t entries) : offsets(entries), bytes(entries) {}
    void measure(const Layout &layout, uint64_t token_rows, uint64_t sampled_rows);
};

class Lift {
public:
    Lift(const DeviceRing &ring, DeviceTail *tail, const Layout &layout, int cuda_device);
    ~Lift();
    Lift(const Lift &) = delete;
    Lift &operator=(const Lift &) = delete;

    // Makes the stream and starts the thread.
    cudaError_t start();
    // Stops the thread and aborts what is still owed. No copy is under way afterwards.
    void stop();
    // Notes a capture before its gather is launched. false: the queue is full.
    bool push(const Armed &armed);
    // Takes the last one back when its launch failed; null when it was aborted already.
    sonde_pending *take_back(uint64_t tag);
    bool idle();
    // Notes the first error; from then on everything is aborted.
    void fail_with(cudaError_t error);
    cudaError_t error() const { return static_cast<cudaError_t>(error_.load()); }
    void fill(sonde_device_stats *stats) const;

private:
    static constexpr size_t burst = 16; // captures of one synchronisation

    void run();
    size_t take();
    sonde_pending *owed(uint64_t tag);
    bool covers(const DeviceCommit &commit, const sonde_pending &pending);
    cudaError_t copy(const char *from, const sonde_pending &pending);
    cudaError_t copy_runs(const char *from, uint8_t *to, const sonde_pending &pending);
    cudaError_t give_back(const DeviceCommit &last);
    void abort(sonde_pending *pending);
    void abort_everything();

    DeviceRing ring_;
    DeviceTail *tail_;
    const Layout &layout_;
    int cuda_device_;
    cudaStream_t stream_ = nullptr;
    DeviceTail *staged_tail_ = nullptr; // pinned
    CaptureShape shape_;
    uint64_t seen_ = 0; // commits taken

    std::mutex lock_; // of the queue
    std::array<Armed, SONDE_MAX_DETACHED> queue_{};
    uint64_t first_ = 0, end_ = 0; // of the queue
    std::array<DeviceCommit, burst> commits_{};
    std::array<sonde_pending *, burst> pendings_{};

    std::atomic<bool> stop_{false};
    std::atomic<int> error_{0};
    std::atomic<uint64_t> armed_{0}, lifted_{0}, aborted_{0}, full_{0}, copies_{0}, bytes_{0};
    std::thread thread_;
};

} // namespace sonde
