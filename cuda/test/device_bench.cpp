// What capture adds to a step on a GPU: a CUDA graph of copies that takes as long as a small model's decode step, with
// and without the gather, in random order, drain to the host included. Prints microseconds; the spread of equal graphs
// beside it.
//   device_bench [rounds=5] [replays=200]

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <thread>

#include "agent.h"
#include "check.h"

using namespace sonde;

namespace {

constexpr uint32_t hidden = 4096; // bf16
constexpr int base_copies = 160;  // of base_bytes: stand for reading the weights
constexpr size_t base_bytes = 24U << 20;

void ok(cudaError_t e) {
    if (e == cudaSuccess) return;
    std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(e));
    std::exit(1);
}

struct Setting {
    uint32_t hooks, batch;
};

// Everything of one setting: a writer, an agent that releases at once, a device ring, tapped tensors, a base step.
struct Bench {
    explicit Bench(Setting s)
        : setting(s), path("/tmp/sonde-bench-" + std::to_string(getpid())), agent(path), ranges(s.batch) {
        sonde_writer_options o{};
        o.struct_bytes = sizeof o;
        o.socket = path.c_str();
        o.data_bytes = 1U << 30;
        CHECK_EQUAL(sonde_writer_open(&o, &writer), SONDE_OK);
        CHECK(agent.accept(5000));
        std::vector<sonde_layout_entry> entries(s.hooks);
        for (uint32_t i = 0; i < s.hooks; i++) {
            entries[i].hook = "resid_post";
            entries[i].layer = static_cast<int32_t>(i);
            entries[i].dtype = SONDE_BF16;
            entries[i].dims = 1;
            entries[i].shape[0] = hidden;
        }
        CHECK_EQUAL(sonde_define_layout(writer, entries.data(), s.hooks, &layout), SONDE_OK);
        const sonde_device_options d{sizeof(sonde_device_options), -1, 1U << 30, layout, 0};
        CHECK_EQUAL(sonde_device_open(writer, &d, &device), SONDE_OK);
        for (uint32_t i = 0; i < s.batch; i++) ranges[i] = {i + 1, 0, 1, 0, SONDE_DECODE, 1, 0, 1};
        ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
        ok(cudaMalloc(reinterpret_cast<void **>(&tensors), uint64_t{s.hooks} * tensor_bytes()));
        ok(cudaMemset(tensors, 1, uint64_t{s.hooks} * tensor_bytes()));
        ok(cudaMalloc(reinterpret_cast<void **>(&base), 2 * base_bytes));
        ok(cudaEventCreate(&begin));
        ok(cudaEventCreate(&end));
        reading = std::thread([this] {
            for (Record r; agent.next(&r, 30000) == Agent::Next::record;) agent.release(r.seq + 1);
        });
    }
    ~Bench() {
        CHECK_EQUAL(sonde_device_close(device, 5000000000U), SONDE_OK);
        sonde_writer_free(writer);
        reading.join();
        ok(cudaFree(tensors));
        ok(cudaFree(base));
        ok(cudaEventDestroy(begin));
        ok(cudaEventDestroy(end));
        ok(cudaStreamDestroy(stream));
    }
    Bench(const Bench &) = delete;
    Bench &operator=(const Bench &) = delete;

    uint64_t tensor_bytes() const { return uint64_t{setting.batch} * hidden * 2; }

    cudaGraphExec_t record(bool captured) {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t exec = nullptr;
        ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        for (int i = 0; i < base_copies; i++)
            ok(cudaMemcpyAsync(base, base + base_bytes, base_bytes, cudaMemcpyDeviceToDevice, stream));
        if (captured) {
            CHECK_EQUAL(sonde_device_plan(device, setting.batch, setting.batch), SONDE_OK);
            for (uint32_t i = 0; i < setting.hooks; i++)
                CHECK_EQUAL(sonde_device_tap(device, i, tensors + i * tensor_bytes(), tensor_bytes()), SONDE_OK);
            CHECK_EQUAL(sonde_device_gather(device, stream), SONDE_OK);
        }
        ok(cudaStreamEndCapture(stream, &graph));
        ok(cudaGraphInstantiate(&exec, graph, 0));
        ok(cudaGraphDestroy(graph));
        return exec;
    }

    // Microseconds of one step.
    double run(bool captured, int replays) {
        cudaGraphExec_t exec = record(captured);
        for (int i = 0; i < 3; i++) ok(cudaGraphLaunch(exec, stream));
        ok(cudaEventRecord(begin, stream));
        for (int i = 0; i < replays; i++) {
            if (captured) {
                CHECK_EQUAL(sonde_begin_step(writer, ranges.data(), setting.batch, &layout, 1, nullptr, 0, nullptr),
                            SONDE_OK);
                CHECK_EQUAL(sonde_device_arm(device, 0, stream), SONDE_OK);
            }
            ok(cudaGraphLaunch(exec, stream));
            if (captured) CHECK_EQUAL(sonde_commit_step(writer), SONDE_OK);
            if (i % 16 == 15) ok(cudaStreamSynchronize(stream)); // the host does not run far ahead of the device
        }
        ok(cudaEventRecord(end, stream));
        ok(cudaEventSynchronize(end));
        float ms = 0;
        ok(cudaEventElapsedTime(&ms, begin, end));
        ok(cudaGraphExecDestroy(exec));
        return 1000.0 * static_cast<double>(ms) / replays;
    }

    Setting setting;
    std::string path;
    Agent agent;
    std::vector<sonde_range> ranges;
    sonde_writer *writer = nullptr;
    sonde_device *device = nullptr;
    uint32_t layout = 0;
    cudaStream_t stream = nullptr;
    cudaEvent_t begin = nullptr, end = nullptr;
    char *tensors = nullptr, *base = nullptr;
    std::thread reading;
};

double median(std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

void measure(Setting s, int rounds, int replays, std::mt19937_64 &random) {
    Bench b(s);
    std::vector<double> without, with;
    std::vector<int> order;
    for (int i = 0; i < 2 * rounds; i++) order.push_back(i % 2);
    std::shuffle(order.begin(), order.end(), random);
    b.run(true, replays);
    for (const int captured : order) (captured != 0 ? with : without).push_back(b.run(captured != 0, replays));
    const auto [low, high] = std::minmax_element(without.begin(), without.end());
    sonde_device_stats d{};
    sonde_stats w{};
    CHECK_EQUAL(sonde_device_get_stats(b.device, &d), SONDE_OK);
    CHECK_EQUAL(sonde_writer_stats(b.writer, &w), SONDE_OK);
    std::printf("| %u | %u | %.0f (spread %.0f) | %.1f | %.2f %% | %llu of %llu captures lifted |\n", s.hooks, s.batch,
                median(without), *high - *low, median(with) - median(without),
                100 * (median(with) / median(without) - 1), static_cast<unsigned long long>(d.lifted),
                static_cast<unsigned long long>(w.steps));
    std::fflush(stdout);
}

} // namespace

int main(int argc, char **argv) {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        std::printf("NOT RUN: device_bench: no CUDA device is there\n");
        return 0;
    }
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 5, replays = argc > 2 ? std::atoi(argv[2]) : 200;
    std::mt19937_64 random = seeded_random();
    std::printf("| hooks | batch | step without, us | added us | added | |\n|---|---|---|---|---|---|\n");
    for (const uint32_t hooks : {36U, 216U})
        for (const uint32_t batch : {1U, 8U, 64U}) measure({hooks, batch}, rounds, replays, random);
}
