// What host and device share of the ring in device memory, and the launches.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace sonde {

constexpr uint32_t max_taps = 1024;     // of one gather: 16 KiB of kernel parameters
constexpr uint32_t commit_slots = 1024; // more than there can be armed captures

// In device memory, written by kernels only, which the streams order.
struct DeviceHead {
    uint64_t head;    // next position in the ring
    uint64_t seq;     // commits so far
    uint64_t tag;     // of the armed capture, 0: none
    uint64_t unarmed; // gathers without a tag
    uint32_t ticket;  // blocks of the running gather that are done
    uint32_t refused; // 1: a block of this capture found no room
};

// In device memory, written by the lift thread's copies only.
struct DeviceTail {
    uint64_t tail; // everything below was lifted
};

// One commit, in pinned host memory, written by the last block of a gather.
struct DeviceCommit {
    uint64_t tag;
    uint64_t pos; // of the capture in the ring
    uint64_t end; // the tail once it is lifted
    uint32_t token_rows, sampled_rows;
    uint32_t refused; // 1: the ring was full, and nothing is there
    uint32_t reserved;
};

struct HostWords {
    alignas(128) uint64_t committed; // commits so far; the release store of the device
    alignas(128) uint64_t unarmed;
    alignas(128) DeviceCommit commits[commit_slots];
};

// Where one gather works.
struct DeviceRing {
    DeviceHead *head;
    const DeviceTail *tail;
    char *base;
    uint64_t mask; // ring bytes - 1
    HostWords *host;
};

// One tapped tensor.
struct GatherEntry {
    uint64_t src;   // a multiple of 16
    uint32_t off16; // in the capture, in units of 16 bytes
    uint32_t bytes;
};

struct GatherStep {
    uint64_t total; // bytes of the whole capture
    uint32_t token_rows, sampled_rows;
    bool last; // it commits
};

// Launches the gather of some entries; at most max_taps.
cudaError_t launch_gather(const DeviceRing &ring, const GatherStep &step, const GatherEntry *entries, uint32_t count,
                          cudaStream_t stream);
// Gives the next gather on the stream its tag.
cudaError_t launch_arm(const DeviceRing &ring, uint64_t tag, cudaStream_t stream);

} // namespace sonde
