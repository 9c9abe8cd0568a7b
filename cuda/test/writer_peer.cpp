// An engine on libsonde for tests of the agent:
//   writer_peer SOCKET STEPS [mode=complete] [descs=64] [bytes=262144] [requests=4] [detach=1] [pause_us=0] [wait_s=20]
//               [journal=DIR] [progress=1]
// Sequences 1 to `requests` compute random runs of tokens; what their rows hold follows from their identity (rows.h).
// With detach=1 every third capture is completed later by another thread; with progress=1 it prints how many steps were
// committed. Prints its statistics as JSON when the agent
// has released everything. Exit status: 0 all was said, 2 wrong usage, 3 the agent did not release everything in
// wait_s.

#include <cinttypes>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "../src/ring.h"
#include "check.h"
#include "rows.h"

using namespace sonde;

namespace {

struct Run {
    std::map<std::string, std::string> options;
    sonde_writer *writer = nullptr;
    uint32_t layout = 0;
    std::vector<uint32_t> positions; // next of each sequence
    std::vector<std::thread> copies;

    uint64_t number(const char *key, uint64_t standard) const {
        const auto found = options.find(key);
        return found == options.end() ? standard : std::strtoull(found->second.c_str(), nullptr, 10);
    }
};

void open_all(Run &run, const char *socket) {
    sonde_writer_options o{};
    o.struct_bytes = sizeof o;
    o.socket = socket;
    o.engine_instance = "cpp-0";
    o.desc_count = run.number("descs", 64);
    o.data_bytes = run.number("bytes", 262144);
    o.step_stall_budget_ns = 20000000000U;
    o.journal_dir = run.options["journal"].c_str();
    if (run.options["mode"] == "complete") o.mode = SONDE_COMPLETE;
    CHECK_EQUAL(sonde_writer_open(&o, &run.writer), SONDE_OK);
    const sonde_model model{"peer", "r1", "", "", "libsonde", "1", 4, 64, 1000};
    CHECK_EQUAL(sonde_set_model(run.writer, &model), SONDE_OK);
    const std::vector<sonde_layout_entry> entries = row_layout();
    CHECK_EQUAL(sonde_define_layout(run.writer, entries.data(), row_entry_count, &run.layout), SONDE_OK);
    run.positions.resize(run.number("requests", 4));
    for (uint64_t n = 1; n <= run.positions.size(); n++) {
        const std::string id = "request-" + std::to_string(n);
        sonde_request r{};
        r.number = n;
        r.external_id = id.c_str();
        r.tenant = "acme";
        CHECK_EQUAL(sonde_open_request(run.writer, &r), SONDE_OK);
    }
}

std::vector<sonde_range> random_ranges(Run &run, std::mt19937_64 &random) {
    std::vector<sonde_range> ranges;
    for (size_t i = 0; i < run.positions.size(); i++) {
        if (random() % 3 == 0) continue;
        const auto count = static_cast<uint32_t>(1 + random() % 5);
        ranges.push_back({i + 1, run.positions[i], count, 0, SONDE_DECODE, static_cast<uint8_t>(random() % 2), 0, 1});
        run.positions[i] += count;
    }
    if (ranges.empty()) return random_ranges(run, random);
    return ranges;
}

void complete_later(Run &run, sonde_pending *pending, const std::vector<sonde_range> &ranges) {
    if (run.copies.size() > 8) {
        run.copies.front().join();
        run.copies.erase(run.copies.begin());
    }
    run.copies.emplace_back([pending, ranges] {
        for (uint32_t e = 0; e < row_entry_count; e++)
            fill_rows(static_cast<uint8_t *>(sonde_pending_span(pending, e, nullptr)), ranges.data(),
                      static_cast<uint32_t>(ranges.size()), 0, e);
        sonde_pending_commit(pending);
    });
}

void write_step(Run &run, uint64_t step, std::mt19937_64 &random) {
    const std::vector<sonde_range> ranges = random_ranges(run, random);
    const auto count = static_cast<uint32_t>(ranges.size());
    CHECK_EQUAL(sonde_begin_step(run.writer, ranges.data(), count, &run.layout, 1, nullptr, 0, nullptr), SONDE_OK);
    sonde_pending *pending = nullptr;
    if (run.number("detach", 0) != 0 && step % 3 == 0)
        CHECK_EQUAL(sonde_step_detach(run.writer, 0, &pending), SONDE_OK);
    for (uint32_t e = 0; pending == nullptr && e < row_entry_count; e++) {
        auto *span = static_cast<uint8_t *>(sonde_step_span(run.writer, 0, e, nullptr));
        if (span != nullptr) fill_rows(span, ranges.data(), count, 0, e);
    }
    CHECK_EQUAL(sonde_commit_step(run.writer), SONDE_OK);
    if (pending != nullptr) complete_later(run, pending, ranges);
}

int say_and_close(Run &run) {
    for (uint64_t n = 1; n <= run.positions.size(); n++) {
        sonde_request_end e{};
        e.number = n;
        e.generated_tokens = run.positions[n - 1];
        CHECK_EQUAL(sonde_end_request(run.writer, &e), SONDE_OK);
    }
    const sonde_status closed = sonde_writer_close(run.writer, run.number("wait_s", 20) * 1000000000U);
    if (closed != SONDE_OK) std::fprintf(stderr, "%s\n", sonde_last_error());
    sonde_stats s{};
    CHECK_EQUAL(sonde_writer_stats(run.writer, &s), SONDE_OK);
    uint64_t dropped = 0;
    for (const uint64_t n : s.dropped_rows) dropped += n;
    std::printf("{\"steps\":%" PRIu64 ",\"captured\":%" PRIu64 ",\"dropped\":%" PRIu64 ",\"control_full\":%" PRIu64
                ",\"unnamed\":%" PRIu64 ",\"aborted\":%" PRIu64 ",\"attaches\":%" PRIu64 ",\"refused\":%" PRIu64 "}\n",
                s.steps, s.captured_rows, dropped, s.dropped_rows[SONDE_CONTROL_FULL], s.unnamed_rows, s.aborted_rows,
                s.attaches, s.refused_releases);
    sonde_writer_free(run.writer);
    return closed == SONDE_OK ? 0 : 3;
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    Run run;
    for (int i = 3; i < argc; i++) {
        const char *equals = std::strchr(argv[i], '=');
        if (equals == nullptr) return 2;
        run.options[std::string(argv[i], static_cast<size_t>(equals - argv[i]))] = equals + 1;
    }
    std::mt19937_64 random(run.number("seed", 1));
    open_all(run, argv[1]);
    const uint64_t steps = std::strtoull(argv[2], nullptr, 10), pause_us = run.number("pause_us", 0);
    for (uint64_t i = 0; i < steps; i++) {
        write_step(run, i, random);
        if (run.number("progress", 0) != 0) {
            std::printf("step %" PRIu64 "\n", i);
            std::fflush(stdout);
        }
        if (pause_us > 0) sleep_ns(pause_us * 1000);
    }
    for (std::thread &copy : run.copies) copy.join();
    return say_and_close(run);
}
