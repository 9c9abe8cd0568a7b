// The kernels: one gather per step copies every tapped tensor into the ring in device memory. The table of pointers
// travels by value in the kernel's parameters, so that a CUDA graph owns it: no upload, no side table.

#include <algorithm>
#include <cstring>

#include "gather.h"

namespace sonde {

namespace {

constexpr int block_threads = 512;
constexpr uint32_t vectors_per_block = 2048, most_chunks = 64;

template <int N>
struct GatherTable {
    GatherStep step;
    uint32_t count;
    GatherEntry entries[N];
};

// The publish: everything that this thread has seen is visible to the host before the value is. The build checks that
// this becomes a store of system scope.
__device__ __forceinline__ void store_release_system(uint64_t *word, uint64_t value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

// Where the capture goes: contiguous, so it skips the end of the ring when it would cross it.
__device__ __forceinline__ uint64_t place(uint64_t head, uint64_t total, uint64_t mask) {
    return (head & mask) + total > mask + 1 ? (head | mask) + 1 : head;
}

__device__ __forceinline__ void copy_entry(char *out, const GatherEntry &e) {
    const auto *src = reinterpret_cast<const uint4 *>(e.src);
    auto *dst = reinterpret_cast<uint4 *>(out + uint64_t{e.off16} * 16);
    const uint32_t vectors = e.bytes / 16, step = gridDim.x * blockDim.x;
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 3 * step < vectors; i += 4 * step) { // four loads in flight
        const uint4 a = __ldcs(src + i), b = __ldcs(src + i + step);
        const uint4 c = __ldcs(src + i + 2 * step), d = __ldcs(src + i + 3 * step);
        __stcs(dst + i, a);
        __stcs(dst + i + step, b);
        __stcs(dst + i + 2 * step, c);
        __stcs(dst + i + 3 * step, d);
    }
    for (; i < vectors; i += step) __stcs(dst + i, __ldcs(src + i));
    // What no vector covers, and the gap to the next entry, which must not show what lay there before.
    const uint32_t rest = vectors * 16 + threadIdx.x;
    if (blockIdx.x == 0 && rest < (e.bytes + 63) / 64 * 64)
        reinterpret_cast<char *>(dst)[rest] = rest < e.bytes ? reinterpret_cast<const char *>(src)[rest] : char{0};
}

// Thread 0 of the last block of a committing gather, which is ordered behind all other blocks.
__device__ __forceinline__ void commit(const DeviceRing &r, const GatherStep &step, uint64_t tag, uint64_t pos) {
    DeviceHead *h = r.head;
    h->ticket = 0;
    const uint32_t refused = atomicExch(&h->refused, 0);
    if (tag == 0) {
        *static_cast<volatile uint64_t *>(&r.host->unarmed) = ++h->unarmed;
        return;
    }
    h->tag = 0;
    const uint64_t seq = h->seq;
    if (refused == 0) h->head = pos + step.total;
    volatile DeviceCommit *c = &r.host->commits[seq % commit_slots];
    c->tag = tag;
    c->pos = pos;
    c->end = refused == 0 ? pos + step.total : h->head;
    c->token_rows = step.token_rows;
    c->sampled_rows = step.sampled_rows;
    c->refused = refused;
    h->seq = seq + 1;
    // Pairs with the acquire load of committed in Lift::take (lift.cpp).
    store_release_system(&r.host->committed, seq + 1);
}

template <int N>
__global__ void __launch_bounds__(block_threads) gather(DeviceRing r, const __grid_constant__ GatherTable<N> t) {
    const uint64_t tag = __ldcg(&r.head->tag);
    const uint64_t pos = place(__ldcg(&r.head->head), t.step.total, r.mask);
    if (tag != 0) {
        // The tail may move while the blocks run: one that found no room says so to the last one, so that all agree.
        if (pos + t.step.total - __ldcg(&r.tail->tail) > r.mask + 1) {
            if (threadIdx.x == 0) atomicExch(&r.head->refused, 1);
        } else if (blockIdx.y < t.count) {
            copy_entry(r.base + (pos & r.mask), t.entries[blockIdx.y]);
        }
    }
    if (!t.step.last) return;
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence(); // this block's writes come before its ticket
    if (atomicAdd(&r.head->ticket, 1) != gridDim.x * gridDim.y - 1) return;
    __threadfence(); // the last ticket comes after every block's writes
    commit(r, t.step, tag, pos);
}

__global__ void arm(DeviceHead *head, uint64_t tag) { head->tag = tag; }

template <int N>
cudaError_t launch(const DeviceRing &ring, const GatherStep &step, const GatherEntry *entries, uint32_t count,
                   cudaStream_t stream) {
    GatherTable<N> table{};
    table.step = step;
    table.count = count;
    uint32_t most = 0;
    for (uint32_t i = 0; i < count; i++) {
        table.entries[i] = entries[i];
        most = std::max(most, entries[i].bytes / 16);
    }
    const uint32_t chunks = std::clamp((most + vectors_per_block - 1) / vectors_per_block, 1U, most_chunks);
    gather<N><<<dim3(chunks, std::max(1U, count)), block_threads, 0, stream>>>(ring, table);
    return cudaGetLastError();
}

} // namespace

cudaError_t launch_gather(const DeviceRing &ring, const GatherStep &step, const GatherEntry *entries, uint32_t count,
                          cudaStream_t stream) {
    if (count <= 64) return launch<64>(ring, step, entries, count, stream);
    if (count <= 240) return launch<240>(ring, step, entries, count, stream); // within 4 KiB of parameters
    if (count <= max_taps) return launch<max_taps>(ring, step, entries, count, stream);
    return cudaErrorInvalidValue;
}

cudaError_t launch_arm(const DeviceRing &ring, uint64_t tag, cudaStream_t stream) {
    arm<<<1, 1, 0, stream>>>(ring.head, tag);
    return cudaGetLastError();
}

} // namespace sonde
