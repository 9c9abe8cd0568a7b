// The device ring on a real GPU: eager steps, CUDA graphs with padding, early gathers of what is overwritten, warm-ups,
// a ring that is full, and several rings. Tapped tensors hold the rows of rows.h; an agent in the process checks each.

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "agent.h"
#include "check.h"
#include "rows.h"
#include "step_parser.h"

using namespace sonde;

namespace {

constexpr uint64_t second = 1000000000;
constexpr uint32_t most_rows = 64;

void ok(cudaError_t e) {
    if (e == cudaSuccess) return;
    std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(e));
    std::exit(1);
}

// A "model" whose tensors are the rows of one layout, padded to most_rows, filled from pinned staging memory on its
// stream.
struct Model {
    Model() {
        ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        for (uint32_t e = 0; e < row_entry_count; e++) {
            ok(cudaMalloc(&tensor[e], bytes(e)));
            ok(cudaHostAlloc(reinterpret_cast<void **>(&staged[e]), bytes(e), cudaHostAllocDefault));
        }
    }
    ~Model() {
        ok(cudaStreamDestroy(stream));
        for (uint32_t e = 0; e < row_entry_count; e++) {
            ok(cudaFree(tensor[e]));
            ok(cudaFreeHost(staged[e]));
        }
    }
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;

    static uint64_t bytes(uint32_t e) { return uint64_t{most_rows} * row_entries[e].row_bytes; }
    // What the next step computes. The step before has run.
    void stage(const sonde_range &range) {
        ok(cudaStreamSynchronize(stream));
        for (uint32_t e = 0; e < row_entry_count; e++) {
            std::memset(staged[e], 0xcc, bytes(e));
            fill_rows(staged[e], &range, 1, 0, e);
        }
    }
    void compute(uint32_t e) { ok(cudaMemcpyAsync(tensor[e], staged[e], bytes(e), cudaMemcpyHostToDevice, stream)); }
    void overwrite(uint32_t e) { ok(cudaMemsetAsync(tensor[e], 0xee, bytes(e), stream)); }

    cudaStream_t stream = nullptr;
    void *tensor[row_entry_count] = {};
    uint8_t *staged[row_entry_count] = {};
};

// A writer with one layout, a device ring, and an agent that reads on a thread of its own.
struct Bench {
    explicit Bench(uint64_t device_ring, uint64_t host_ring = 16U << 20) : agent(path()) {
        sonde_writer_options o{};
        o.struct_bytes = sizeof o;
        const std::string socket = last_path;
        o.socket = socket.c_str();
        o.data_bytes = host_ring;
        o.mode = SONDE_COMPLETE;
        o.step_stall_budget_ns = second;
        CHECK_EQUAL(sonde_writer_open(&o, &writer), SONDE_OK);
        CHECK(agent.accept(5000));
        const std::vector<sonde_layout_entry> entries = row_layout();
        CHECK_EQUAL(sonde_define_layout(writer, entries.data(), row_entry_count, &layout), SONDE_OK);
        device = open_device(device_ring);
        reading = std::thread([this] { read(); });
    }
    ~Bench() { sonde_writer_free(writer); }
    Bench(const Bench &) = delete;
    Bench &operator=(const Bench &) = delete;

    std::string path() { return last_path = "/tmp/sonde-device-" + std::to_string(getpid()); }
    sonde_device *open_device(uint64_t bytes) {
        sonde_device_options o{sizeof(sonde_device_options), -1, bytes, layout, 0};
        sonde_device *d = nullptr;
        if (sonde_device_open(writer, &o, &d) != SONDE_OK) std::fprintf(stderr, "%s\n", sonde_last_error());
        CHECK(d != nullptr);
        return d;
    }
    void read() {
        ParsedStep step;
        Record r;
        for (; agent.next(&r, 20000) == Agent::Next::record; agent.release(r.seq + 1)) {
            if (r.kind == RING2_KIND_STEP) CHECK(parse_step(r.payload, r.bytes, &step));
            if (r.kind == RING2_KIND_CAPTURE && r.payload != nullptr) rows += check_capture(r, step);
            aborted += r.kind == RING2_KIND_CAPTURE && r.payload == nullptr;
        }
        CHECK(agent.why().empty());
    }
    void begin(Model &m, uint32_t i, uint32_t count) {
        range = {1 + i % 7, i, count, 0, SONDE_DECODE, 1, 0, 1};
        m.stage(range);
        CHECK_EQUAL(sonde_begin_step(writer, &range, 1, &layout, 1, nullptr, 0, nullptr), SONDE_OK);
        CHECK_EQUAL(sonde_step_outcome(writer, 0), SONDE_CAPTURED);
        CHECK_EQUAL(sonde_device_arm(device, 0, m.stream), SONDE_OK);
    }
    void commit() {
        CHECK_EQUAL(sonde_commit_step(writer), SONDE_OK);
        wanted += 2 * range.count + 1;
    }
    // Waits until all is lifted. A busy machine may leave the lift thread without a core until the device ring is full,
    // which other tests are about.
    void settle() {
        sonde_device_stats s{};
        do {
            sleep_ns(20000);
            CHECK_EQUAL(sonde_device_get_stats(device, &s), SONDE_OK);
        } while (s.lifted + s.aborted < s.armed);
    }
    // Ends everything; the device ring's last figures.
    sonde_device_stats finish(uint64_t timeout_ns = 10 * second) {
        sonde_device_stats s{};
        for (const uint64_t start = monotonic_ns(); monotonic_ns() - start < timeout_ns; sleep_ns(100000)) {
            CHECK_EQUAL(sonde_device_get_stats(device, &s), SONDE_OK);
            if (s.lifted + s.aborted == s.armed) break;
        }
        const sonde_status closed = sonde_device_close(device, 0);
        CHECK(closed == SONDE_OK || closed == SONDE_TIMEOUT);
        CHECK_EQUAL(sonde_writer_close(writer, 10 * second), SONDE_OK);
        reading.join();
        CHECK_EQUAL(s.cuda_error, 0);
        return s;
    }

    std::string last_path;
    Agent agent;
    sonde_writer *writer = nullptr;
    sonde_device *device = nullptr;
    uint32_t layout = 0;
    sonde_range range{};
    std::thread reading;
    uint64_t rows = 0, aborted = 0, wanted = 0;
};

void tap_all(sonde_device *d, const Model &m, uint32_t rows, uint32_t sampled) {
    CHECK_EQUAL(sonde_device_plan(d, rows, sampled), SONDE_OK);
    for (uint32_t e = 0; e < row_entry_count; e++) {
        const uint32_t n = row_entries[e].select == SONDE_SELECT_ALL ? rows : sampled;
        CHECK_EQUAL(sonde_device_tap(d, e, m.tensor[e], uint64_t{n} * row_entries[e].row_bytes), SONDE_OK);
    }
}

void eager_steps_arrive() {
    Bench b(4U << 20);
    Model m;
    for (uint32_t i = 0; i < 2000; i++) {
        const uint32_t count = 1 + i % most_rows;
        b.begin(m, i, count);
        for (uint32_t e = 0; e < row_entry_count; e++) m.compute(e);
        tap_all(b.device, m, count, 1);
        CHECK_EQUAL(sonde_device_gather(b.device, m.stream), SONDE_OK);
        b.commit();
        if (i % 16 == 15) b.settle();
    }
    const sonde_device_stats s = b.finish();
    CHECK_EQUAL(b.rows, b.wanted);
    CHECK_EQUAL(s.lifted, 2000);
    CHECK_EQUAL(s.copies, 2000); // exact rows: one copy a capture
}

// Records compute, early gather, overwrite, and the gather at the end.
cudaGraphExec_t record(Bench &b, Model &m, bool early) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    ok(cudaStreamBeginCapture(m.stream, cudaStreamCaptureModeGlobal));
    for (uint32_t e = 0; e < row_entry_count; e++) m.compute(e);
    CHECK_EQUAL(sonde_device_plan(b.device, most_rows, most_rows), SONDE_OK);
    CHECK_EQUAL(sonde_device_tap(b.device, 0, m.tensor[0], Model::bytes(0)), SONDE_OK);
    if (early) {
        CHECK_EQUAL(sonde_device_gather_early(b.device, m.stream), SONDE_OK);
        CHECK_EQUAL(sonde_device_join(b.device, m.stream), SONDE_OK);
        m.overwrite(0);
    }
    CHECK_EQUAL(sonde_device_tap(b.device, 1, m.tensor[1], Model::bytes(1)), SONDE_OK);
    CHECK_EQUAL(sonde_device_tap(b.device, 2, m.tensor[2], Model::bytes(2)), SONDE_OK);
    CHECK_EQUAL(sonde_device_gather(b.device, m.stream), SONDE_OK);
    m.overwrite(1);
    m.overwrite(2);
    ok(cudaStreamEndCapture(m.stream, &graph));
    ok(cudaGraphInstantiate(&exec, graph, 0));
    ok(cudaGraphDestroy(graph));
    return exec;
}

void a_graph_replays_its_gather(bool early) {
    Bench b(1U << 20);
    Model m;
    cudaGraphExec_t exec = record(b, m, early);
    for (int i = 0; i < 3; i++) ok(cudaGraphLaunch(exec, m.stream)); // warm-ups are not armed
    for (uint32_t i = 0; i < 3000; i++) {
        b.begin(m, i, 1 + i % most_rows); // the graph's rows are padded
        ok(cudaGraphLaunch(exec, m.stream));
        b.commit();
        if (i % 16 == 15) b.settle();
    }
    const sonde_device_stats s = b.finish();
    ok(cudaGraphExecDestroy(exec));
    CHECK_EQUAL(b.rows, b.wanted);
    CHECK_EQUAL(s.unarmed, 3);
    CHECK_EQUAL(s.lifted, 3000);
}

void graphs_capture_padded_rows() { a_graph_replays_its_gather(false); }
void tensors_that_are_overwritten_are_gathered_early() { a_graph_replays_its_gather(true); }

// A step whose gather never ran is aborted as soon as a later one commits; its rows are never another step's.
void a_gather_that_never_ran_is_aborted() {
    Bench b(4U << 20);
    Model m;
    for (uint32_t i = 0; i < 30; i++) {
        b.begin(m, i, 3);
        if (i % 3 != 0) {
            for (uint32_t e = 0; e < row_entry_count; e++) m.compute(e);
            tap_all(b.device, m, 3, 1);
            CHECK_EQUAL(sonde_device_gather(b.device, m.stream), SONDE_OK);
        }
        b.commit();
    }
    const sonde_device_stats s = b.finish();
    CHECK_EQUAL(s.lifted, 20);
    CHECK_EQUAL(s.aborted, 10);
    CHECK_EQUAL(b.aborted, 10);
    CHECK_EQUAL(b.rows, 20 * 7);
}

// Gathers run ahead of the lift thread until the ring is full: those captures are aborted, all others are whole. How
// many that is depends on the machine.
void a_full_device_ring_refuses_whole_captures() {
    Bench b(1U << 20, 64U << 20);
    Model m;
    void *large = nullptr;
    const uint32_t rows = 1500; // 384000 + 4500 + 20 bytes: two captures fit
    ok(cudaMalloc(&large, uint64_t{rows} * 256));
    ok(cudaMemset(large, 0, uint64_t{rows} * 256));
    sonde_range r{1, 0, rows, 0, SONDE_PREFILL, 1, 0, 1};
    std::vector<uint8_t> host(uint64_t{rows} * 256);
    void *parts[row_entry_count] = {};
    for (uint32_t e = 0; e < row_entry_count; e++) {
        fill_rows(host.data(), &r, 1, 0, e);
        ok(cudaMalloc(&parts[e], host.size()));
        ok(cudaMemcpy(parts[e], host.data(), host.size(), cudaMemcpyHostToDevice));
    }
    for (uint32_t i = 0; i < 200; i++) {
        CHECK_EQUAL(sonde_begin_step(b.writer, &r, 1, &b.layout, 1, nullptr, 0, nullptr), SONDE_OK);
        CHECK_EQUAL(sonde_device_arm(b.device, 0, m.stream), SONDE_OK);
        CHECK_EQUAL(sonde_device_plan(b.device, rows, 1), SONDE_OK);
        for (uint32_t e = 0; e < row_entry_count; e++) {
            const uint64_t n = row_entries[e].select == SONDE_SELECT_ALL ? rows : 1;
            CHECK_EQUAL(sonde_device_tap(b.device, e, parts[e], n * row_entries[e].row_bytes), SONDE_OK);
        }
        CHECK_EQUAL(sonde_device_gather(b.device, m.stream), SONDE_OK);
        CHECK_EQUAL(sonde_commit_step(b.writer), SONDE_OK);
    }
    const sonde_device_stats s = b.finish();
    CHECK_EQUAL(s.lifted + s.full, 200);
    CHECK_EQUAL(s.aborted, s.full);
    CHECK_EQUAL(b.rows, s.lifted * (2 * rows + 1));
    std::printf("    %llu lifted, %llu found the ring full\n", static_cast<unsigned long long>(s.lifted),
                static_cast<unsigned long long>(s.full));
    ok(cudaFree(large));
    for (void *part : parts) ok(cudaFree(part));
}

void two_device_rings_of_one_writer_do_not_mix() {
    Bench b(4U << 20);
    sonde_device *other = b.open_device(2U << 20);
    sonde_device *const rings[] = {b.device, other};
    Model models[2];
    for (uint32_t i = 0; i < 1000; i++) {
        b.device = rings[i % 2];
        Model &m = models[i % 2];
        b.begin(m, i, 2);
        for (uint32_t e = 0; e < row_entry_count; e++) m.compute(e);
        tap_all(b.device, m, 2, 1);
        CHECK_EQUAL(sonde_device_gather(b.device, m.stream), SONDE_OK);
        b.commit();
    }
    CHECK_EQUAL(sonde_device_close(other, 10 * second), SONDE_OK);
    b.device = rings[0];
    b.finish();
    CHECK_EQUAL(b.rows, b.wanted);
}

void wrong_uses_are_refused() {
    Bench b(1U << 20);
    Model m;
    sonde_device *d = nullptr;
    sonde_device_options o{sizeof(sonde_device_options), -1, 1000, b.layout, 0};
    CHECK_EQUAL(sonde_device_open(b.writer, &o, &d), SONDE_INVALID);
    o.ring_bytes = 1U << 20;
    o.layout = 77;
    CHECK_EQUAL(sonde_device_open(b.writer, &o, &d), SONDE_INVALID);
    CHECK_EQUAL(sonde_device_tap(b.device, 0, m.tensor[0], 256), SONDE_STATE);
    CHECK_EQUAL(sonde_device_gather(b.device, m.stream), SONDE_STATE);
    CHECK_EQUAL(sonde_device_arm(b.device, 0, m.stream), SONDE_STATE);
    CHECK_EQUAL(sonde_device_plan(b.device, 1U << 20, 1), SONDE_INVALID); // larger than the ring
    CHECK_EQUAL(sonde_device_plan(b.device, 1, 1), SONDE_OK);
    CHECK_EQUAL(sonde_device_tap(b.device, 0, m.tensor[0], 255), SONDE_INVALID);
    CHECK_EQUAL(sonde_device_tap(b.device, 0, static_cast<char *>(m.tensor[0]) + 4, 256), SONDE_INVALID);
    CHECK_EQUAL(sonde_device_tap(b.device, 0, m.tensor[0], 256), SONDE_OK);
    CHECK_EQUAL(sonde_device_tap(b.device, 0, m.tensor[0], 256), SONDE_INVALID);
    CHECK_EQUAL(sonde_device_gather(b.device, m.stream), SONDE_STATE);
    b.finish();
}

} // namespace

int main() {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        std::printf("NOT RUN: device_test: no CUDA device is there\n");
        return 0;
    }
    std::printf("device_test\n");
    RUN(eager_steps_arrive);
    RUN(graphs_capture_padded_rows);
    RUN(tensors_that_are_overwritten_are_gathered_early);
    RUN(a_gather_that_never_ran_is_aborted);
    RUN(a_full_device_ring_refuses_whole_captures);
    RUN(two_device_rings_of_one_writer_do_not_mix);
    RUN(wrong_uses_are_refused);
}
