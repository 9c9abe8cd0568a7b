// The library through its C interface, with an agent in the same process. Built a second time with AddressSanitizer.

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <initializer_list>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "agent.h"
#include "check.h"
#include "rows.h"
#include "step_parser.h"

using namespace sonde;

namespace {

constexpr uint64_t second = 1000000000;

std::string socket_path() {
    static int n = 0;
    return "/tmp/sonde-test-" + std::to_string(getpid()) + "-" + std::to_string(n++);
}

sonde_writer_options options_for(const std::string &socket) {
    sonde_writer_options o{};
    o.struct_bytes = sizeof o;
    o.socket = socket.c_str();
    o.engine_instance = "test";
    o.desc_count = 64;
    o.data_bytes = 256U << 10;
    return o;
}

struct Free {
    void operator()(sonde_writer *w) const { sonde_writer_free(w); }
};
using WriterPointer = std::unique_ptr<sonde_writer, Free>;

WriterPointer open_writer(const sonde_writer_options &o) {
    sonde_writer *w = nullptr;
    CHECK_EQUAL(sonde_writer_open(&o, &w), SONDE_OK);
    return WriterPointer(w);
}

uint32_t define_rows(sonde_writer *w) {
    const std::vector<sonde_layout_entry> entries = row_layout();
    uint32_t layout = 99;
    CHECK_EQUAL(sonde_define_layout(w, entries.data(), row_entry_count, &layout), SONDE_OK);
    return layout;
}

void open_request(sonde_writer *w, uint64_t number) {
    sonde_request r{};
    r.number = number;
    r.external_id = "r";
    CHECK_EQUAL(sonde_open_request(w, &r), SONDE_OK);
}

void end_request(sonde_writer *w, uint64_t number) {
    sonde_request_end e{};
    e.number = number;
    CHECK_EQUAL(sonde_end_request(w, &e), SONDE_OK);
}

sonde_range range_at(uint64_t number, uint32_t position, uint32_t count) {
    return {number, position, count, 0, SONDE_DECODE, 1, 0, 1};
}

// One step of one range; what becomes of its capture.
uint32_t write_step(sonde_writer *w, uint32_t layout, const sonde_range &range) {
    CHECK_EQUAL(sonde_begin_step(w, &range, 1, &layout, 1, nullptr, 0, nullptr), SONDE_OK);
    const uint32_t outcome = sonde_step_outcome(w, 0);
    for (uint32_t e = 0; e < row_entry_count; e++) {
        uint64_t bytes = 0;
        auto *span = static_cast<uint8_t *>(sonde_step_span(w, 0, e, &bytes));
        CHECK((span != nullptr) == (outcome == SONDE_CAPTURED));
        if (span == nullptr) continue;
        CHECK_EQUAL(bytes, uint64_t{sonde_step_rows(w, 0, e)} * row_entries[e].row_bytes);
        fill_rows(span, &range, 1, 0, e);
    }
    CHECK_EQUAL(sonde_commit_step(w), SONDE_OK);
    return outcome;
}

sonde_stats stats_of(sonde_writer *w) {
    sonde_stats s{};
    CHECK_EQUAL(sonde_writer_stats(w, &s), SONDE_OK);
    return s;
}

// What an agent reads until nothing comes for a while, checked row by row.
struct Seen {
    std::vector<uint16_t> kinds;
    uint64_t rows = 0, aborted = 0, last_step = 0, missing_rows = 0;
};

void look_at(const Record &r, ParsedStep *step, Seen *seen) {
    seen->kinds.push_back(r.kind);
    if (r.kind == RING2_KIND_STEP) {
        CHECK(parse_step(r.payload, r.bytes, step));
        seen->last_step = step->step;
    } else if (r.kind == RING2_KIND_MISSING) {
        BodyReader b(r.payload, r.bytes);
        for (uint32_t n = b.take<uint32_t>(); n > 0; n--) {
            for (int skipped = 0; skipped < 28; skipped++) b.take<uint8_t>();
            seen->missing_rows += b.take<uint64_t>();
            b.take<uint64_t>();
            b.take<uint64_t>();
        }
        CHECK(b.done());
    } else if (r.kind == RING2_KIND_CAPTURE) {
        if (r.payload == nullptr) {
            seen->aborted++;
        } else {
            seen->rows += check_capture(r, *step);
        }
    }
}

Agent::Next drain(Agent &agent, Seen *seen, int quiet_ms) {
    ParsedStep step;
    Record r;
    for (;;) {
        const Agent::Next next = agent.next(&r, quiet_ms);
        if (next != Agent::Next::record) return next;
        look_at(r, &step, seen);
        agent.release(r.seq + 1);
    }
}

void rows_reach_the_agent_and_the_end_is_clean() {
    const std::string path = socket_path();
    Agent agent(path);
    WriterPointer w = open_writer(options_for(path));
    CHECK(agent.accept(5000));
    CHECK_EQUAL(sonde_writer_wait_attached(w.get(), 5 * second), SONDE_OK);
    CHECK_EQUAL(agent.config().epoch, sonde_writer_epoch(w.get()));
    const sonde_model model{"m", "r", nullptr, "", "e", "1", 2, 64, 100};
    CHECK_EQUAL(sonde_set_model(w.get(), &model), SONDE_OK);
    const uint32_t layout = define_rows(w.get());
    open_request(w.get(), 7);
    Seen seen;
    std::thread reading([&] { CHECK(drain(agent, &seen, 5000) == Agent::Next::end); });
    uint32_t captured = 0;
    for (uint32_t i = 0; i < 500; i++)
        captured += write_step(w.get(), layout, range_at(7, i, 1 + i % 3)) == SONDE_CAPTURED;
    end_request(w.get(), 7);
    CHECK_EQUAL(sonde_writer_close(w.get(), 5 * second), SONDE_OK);
    reading.join();
    const sonde_stats s = stats_of(w.get());
    uint64_t dropped = 0;
    for (const uint64_t n : s.dropped_rows) dropped += n;
    CHECK(captured > 0);
    CHECK_EQUAL(s.captured_rows, seen.rows + dropped);
    CHECK_EQUAL(seen.kinds.back(), RING2_KIND_BYE);
    CHECK_EQUAL(sonde_commit_step(w.get()), SONDE_STATE);
    const sonde_range range = range_at(7, 0, 1);
    CHECK_EQUAL(sonde_begin_step(w.get(), &range, 1, &layout, 1, nullptr, 0, nullptr), SONDE_CLOSED);
}

// Without a reader every row is either in the ring, or counted by reason and named in STEP or MISSING.
void a_full_ring_drops_counts_and_names() {
    const std::string path = socket_path();
    WriterPointer w = open_writer(options_for(path));
    const uint32_t layout = define_rows(w.get());
    open_request(w.get(), 1);
    for (uint32_t i = 0; i < 1000; i++) write_step(w.get(), layout, range_at(1, i, 1));
    const sonde_stats s = stats_of(w.get());
    CHECK(s.dropped_rows[SONDE_NO_SLOT] > 0);
    CHECK(s.dropped_rows[SONDE_CONTROL_FULL] > 0);
    CHECK_EQUAL(s.captured_rows, 3000);
    CHECK(s.pending_control > 0);
    Agent agent(path);
    CHECK(agent.accept(5000));
    Seen seen;
    CHECK(drain(agent, &seen, 300) == Agent::Next::timeout);
    CHECK_EQUAL(seen.missing_rows, s.dropped_rows[SONDE_CONTROL_FULL]);
    CHECK_EQUAL(seen.rows, s.captured_rows - s.dropped_rows[SONDE_NO_SLOT] - s.dropped_rows[SONDE_CONTROL_FULL]);
    CHECK_EQUAL(stats_of(w.get()).pending_control, 0);
}

void a_step_larger_than_the_ring_is_oversize() {
    WriterPointer w = open_writer(options_for(""));
    const uint32_t layout = define_rows(w.get());
    CHECK_EQUAL(write_step(w.get(), layout, range_at(1, 0, 100000)), SONDE_OVERSIZE);
    CHECK_EQUAL(stats_of(w.get()).dropped_rows[SONDE_OVERSIZE], 200001);
}

void a_new_agent_gets_what_is_alive_and_reads_again_from_the_release() {
    const std::string path = socket_path();
    WriterPointer w = open_writer(options_for(path));
    const sonde_model old_model{"old", "", "", "", "", "", 1, 1, 1}, model{"new", "", "", "", "", "", 1, 1, 1};
    auto agent = std::make_unique<Agent>(path);
    CHECK(agent->accept(5000));
    CHECK(agent->snapshot().empty());
    CHECK_EQUAL(sonde_set_model(w.get(), &old_model), SONDE_OK);
    CHECK_EQUAL(sonde_set_model(w.get(), &model), SONDE_OK);
    const uint32_t layout = define_rows(w.get());
    for (uint64_t n = 1; n <= 4; n++) open_request(w.get(), n);
    end_request(w.get(), 2);
    Seen seen;
    CHECK(drain(*agent, &seen, 100) == Agent::Next::timeout);
    CHECK_EQUAL(write_step(w.get(), layout, range_at(3, 0, 2)), SONDE_CAPTURED);
    end_request(w.get(), 3); // neither is read by the first agent
    const uint64_t release = agent->core().released();
    agent.reset();
    agent = std::make_unique<Agent>(path);
    CHECK(agent->accept(5000));
    CHECK_EQUAL(agent->core().next(), release);
    std::multiset<uint16_t> kinds;
    std::set<uint64_t> open;
    for (const SnapshotItem &item : agent->snapshot()) {
        kinds.insert(item.kind);
        CHECK(item.seq < release);
        if (item.kind == RING2_KIND_REQUEST_OPEN) open.insert(BodyReader(item.payload.data(), 8).take<uint64_t>());
        if (item.kind == RING2_KIND_MODEL) CHECK(BodyReader(item.payload.data(), item.payload.size()).text() == "new");
    }
    CHECK_EQUAL(kinds.count(RING2_KIND_MODEL), 1);
    CHECK_EQUAL(kinds.count(RING2_KIND_LAYOUT), 1);
    CHECK(open == (std::set<uint64_t>{1, 3, 4})); // 3 until its end is released
    Seen again;
    CHECK(drain(*agent, &again, 100) == Agent::Next::timeout);
    CHECK_EQUAL(again.rows, 5);
    CHECK_EQUAL(stats_of(w.get()).attaches, 2);
}

struct Stopped {
    std::atomic<uint64_t> number{0};
};

uint8_t stop_it(void *user, const sonde_abort_request *request, uint32_t *final_length) {
    CHECK(std::string(request->engine_id) == "seq-1");
    static_cast<Stopped *>(user)->number = request->number;
    *final_length = 42;
    return SONDE_ABORT_STOPPED;
}

void an_abort_hits_only_the_request_that_it_means() {
    const std::string path = socket_path();
    Agent agent(path);
    Stopped stopped;
    sonde_writer_options o = options_for(path);
    o.on_abort = stop_it;
    o.on_abort_user = &stopped;
    WriterPointer w = open_writer(o);
    CHECK(agent.accept(5000));
    const uint64_t epoch = sonde_writer_epoch(w.get());
    uint32_t length = 0;
    CHECK_EQUAL(agent.abort(epoch + 2, 5, 0, "seq-1", &length), SONDE_ABORT_UNKNOWN);
    CHECK_EQUAL(agent.abort(epoch, 5, 1, "seq-1", &length), SONDE_ABORT_UNKNOWN); // expired in 1970
    CHECK_EQUAL(stopped.number.load(), 0);
    CHECK_EQUAL(agent.abort(epoch, 5, wall_ns() + 60 * second, "seq-1", &length), SONDE_ABORT_STOPPED);
    CHECK_EQUAL(length, 42);
    CHECK_EQUAL(stopped.number.load(), 5);
}

// Mode complete waits, never beyond its budget, and gives up waiting when that is of no use.
void complete_waits_then_gives_up_then_waits_again() {
    const std::string path = socket_path();
    Agent agent(path);
    sonde_writer_options o = options_for(path);
    o.mode = SONDE_COMPLETE;
    o.step_stall_budget_ns = 5000000;
    o.stall_limit = 3;
    WriterPointer w = open_writer(o);
    CHECK(agent.accept(5000));
    const uint32_t layout = define_rows(w.get());
    while (write_step(w.get(), layout, range_at(1, 0, 1)) == SONDE_CAPTURED) {
    }
    for (int i = 0; i < 10; i++) CHECK(write_step(w.get(), layout, range_at(1, 0, 1)) != SONDE_CAPTURED);
    sonde_stats s = stats_of(w.get());
    CHECK_EQUAL(s.exhausted_steps, 3);
    CHECK_EQUAL(s.stalls, 3);
    CHECK(s.stall_ns >= 3 * o.step_stall_budget_ns);
    std::atomic<bool> done{false};
    std::thread reading([&] {
        Seen seen;
        while (!done) drain(agent, &seen, 5);
    });
    while (stats_of(w.get()).release == 0) {
    }
    uint32_t captured = 0;
    for (uint32_t i = 0; i < 300; i++) captured += write_step(w.get(), layout, range_at(1, i, 1)) == SONDE_CAPTURED;
    done = true;
    reading.join();
    CHECK(captured > 0); // the reader moved: steps wait, and fit, again
}

void detached_copies_complete_later_in_any_order() {
    const std::string path = socket_path();
    Agent agent(path);
    WriterPointer w = open_writer(options_for(path));
    CHECK(agent.accept(5000));
    const uint32_t layout = define_rows(w.get());
    sonde_pending *pending[3] = {};
    for (uint32_t i = 0; i < 3; i++) {
        const sonde_range range = range_at(1, i, 2);
        CHECK_EQUAL(sonde_begin_step(w.get(), &range, 1, &layout, 1, nullptr, 0, nullptr), SONDE_OK);
        CHECK_EQUAL(sonde_step_detach(w.get(), 0, &pending[i]), SONDE_OK);
        sonde_pending *again = nullptr;
        CHECK_EQUAL(sonde_step_detach(w.get(), 0, &again), SONDE_STATE);
        CHECK_EQUAL(sonde_commit_step(w.get()), SONDE_OK);
    }
    CHECK_EQUAL(stats_of(w.get()).detached, 3);
    for (const uint32_t i : {2U, 0U, 1U}) {
        std::thread([&, i] {
            const sonde_range range = range_at(1, i, 2);
            for (uint32_t e = 0; e < row_entry_count; e++) {
                uint64_t bytes = 0;
                fill_rows(static_cast<uint8_t *>(sonde_pending_span(pending[i], e, &bytes)), &range, 1, 0, e);
            }
            i == 1 ? sonde_pending_abort(pending[i]) : sonde_pending_commit(pending[i]);
        }).join();
    }
    Seen seen;
    CHECK(drain(agent, &seen, 100) == Agent::Next::timeout);
    CHECK_EQUAL(seen.rows, 10);
    CHECK_EQUAL(seen.aborted, 1);
    CHECK_EQUAL(stats_of(w.get()).aborted_rows, 5);
    CHECK_EQUAL(stats_of(w.get()).detached, 0);
}

// A copy that never ends does not stall the ring, and its span is not given to others while it may still be written.
void a_stuck_copy_is_aborted_and_its_span_kept_out_of_use() {
    const std::string path = socket_path();
    Agent agent(path);
    sonde_writer_options o = options_for(path);
    o.copy_timeout_ns = 20000000;
    WriterPointer w = open_writer(o);
    CHECK(agent.accept(5000));
    const uint32_t layout = define_rows(w.get());
    const sonde_range range = range_at(9, 0, 20);
    CHECK_EQUAL(sonde_begin_step(w.get(), &range, 1, &layout, 1, nullptr, 0, nullptr), SONDE_OK);
    sonde_pending *stuck = nullptr;
    CHECK_EQUAL(sonde_step_detach(w.get(), 0, &stuck), SONDE_OK);
    CHECK_EQUAL(sonde_commit_step(w.get()), SONDE_OK);
    uint64_t bytes = 0;
    auto *late = static_cast<uint8_t *>(sonde_pending_span(stuck, 0, &bytes));
    Seen seen;
    while (seen.aborted == 0) drain(agent, &seen, 50);
    std::atomic<bool> stop{false};
    std::thread dma([&] {
        while (!stop) std::memset(late, 0xee, bytes);
    });
    for (uint32_t i = 0; i < 2000; i++) {
        write_step(w.get(), layout, range_at(1, i, 2));
        if (i % 10 == 0) CHECK(drain(agent, &seen, 0) == Agent::Next::timeout);
    }
    const sonde_stats s = stats_of(w.get());
    CHECK_EQUAL(s.stuck_copies, 1);
    CHECK(s.quarantined_bytes >= bytes);
    CHECK(s.claim > 3000);
    stop = true;
    dma.join();
    sonde_pending_commit(stuck);
    CHECK_EQUAL(stats_of(w.get()).quarantined_bytes, 0);
}

void a_detached_copy_may_outlive_its_writer() {
    WriterPointer w = open_writer(options_for(""));
    const uint32_t layout = define_rows(w.get());
    const sonde_range range = range_at(1, 0, 4);
    CHECK_EQUAL(sonde_begin_step(w.get(), &range, 1, &layout, 1, nullptr, 0, nullptr), SONDE_OK);
    sonde_pending *pending = nullptr;
    CHECK_EQUAL(sonde_step_detach(w.get(), 0, &pending), SONDE_OK);
    CHECK_EQUAL(sonde_commit_step(w.get()), SONDE_OK);
    w.reset();
    uint64_t bytes = 0;
    std::memset(sonde_pending_span(pending, 0, &bytes), 1, 4);
    sonde_pending_commit(pending);
}

void a_forked_child_is_refused_and_hides_no_death() {
    const std::string path = socket_path();
    Agent agent(path);
    WriterPointer w = open_writer(options_for(path));
    CHECK(agent.accept(5000));
    const uint32_t layout = define_rows(w.get());
    int pipe_fds[2];
    CHECK(pipe(pipe_fds) == 0);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        const sonde_range range = range_at(1, 0, 1);
        const bool refused = sonde_begin_step(w.get(), &range, 1, &layout, 1, nullptr, 0, nullptr) == SONDE_FORKED &&
                             sonde_writer_close(w.get(), 0) == SONDE_FORKED &&
                             sonde_step_span(w.get(), 0, 0, nullptr) == nullptr;
        close(pipe_fds[1]);
        char byte = 0;
        while (read(pipe_fds[0], &byte, 1) > 0) { // until the parent lets go
        }
        _exit(refused ? 0 : 1);
    }
    close(pipe_fds[0]);
    CHECK_EQUAL(write_step(w.get(), layout, range_at(1, 0, 1)), SONDE_CAPTURED);
    w.reset(); // the child is alive, and the agent sees the end all the same
    Seen seen;
    CHECK(drain(agent, &seen, 3000) == Agent::Next::end);
    close(pipe_fds[1]);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void wrong_uses_are_refused_with_a_sentence() {
    sonde_writer *none = nullptr;
    sonde_writer_options o = options_for("");
    o.desc_count = 7;
    CHECK_EQUAL(sonde_writer_open(&o, &none), SONDE_INVALID);
    CHECK(std::string(sonde_last_error()).find("7 descriptors") != std::string::npos);
    o = options_for("");
    o.struct_bytes = 8;
    CHECK_EQUAL(sonde_writer_open(&o, &none), SONDE_INVALID);
    WriterPointer w = open_writer(options_for(""));
    uint32_t layout = define_rows(w.get());
    const auto begin = [&](const sonde_range &r, uint32_t id) {
        return sonde_begin_step(w.get(), &r, 1, &id, 1, nullptr, 0, nullptr);
    };
    sonde_range r = range_at(1, 0, 1);
    CHECK_EQUAL(begin(r, layout + 1), SONDE_INVALID);
    r.count = 0;
    CHECK_EQUAL(begin(r, layout), SONDE_INVALID);
    r = range_at(1, 0xffffffff, 2);
    CHECK_EQUAL(begin(r, layout), SONDE_INVALID);
    r = range_at(1, 0, 1);
    r.layout_mask = 2;
    CHECK_EQUAL(begin(r, layout), SONDE_INVALID);
    CHECK_EQUAL(sonde_begin_step(w.get(), nullptr, 1, &layout, 1, nullptr, 0, nullptr), SONDE_INVALID);
    CHECK_EQUAL(begin(range_at(1, 0, 1), layout), SONDE_OK);
    CHECK_EQUAL(begin(range_at(1, 0, 1), layout), SONDE_STATE);
    CHECK_EQUAL(sonde_step_abort(w.get(), 1), SONDE_INVALID);
    CHECK(sonde_step_span(w.get(), 0, 9, nullptr) == nullptr);
    CHECK_EQUAL(sonde_commit_step(w.get()), SONDE_OK);
    open_request(w.get(), 5);
    sonde_request twice{};
    twice.number = 5;
    CHECK_EQUAL(sonde_open_request(w.get(), &twice), SONDE_INVALID);
    sonde_request_end unknown{};
    unknown.number = 6;
    CHECK_EQUAL(sonde_end_request(w.get(), &unknown), SONDE_INVALID);
    sonde_layout_entry bad = row_layout()[0];
    bad.dtype = 99;
    CHECK_EQUAL(sonde_define_layout(w.get(), &bad, 1, &layout), SONDE_INVALID);
    bad = row_layout()[0];
    bad.shape[0] = 0;
    CHECK_EQUAL(sonde_define_layout(w.get(), &bad, 1, &layout), SONDE_INVALID);
    const std::string long_text(5000, 'x');
    bad = row_layout()[0];
    bad.hook = long_text.c_str();
    CHECK_EQUAL(sonde_define_layout(w.get(), &bad, 1, &layout), SONDE_INVALID);
}

// The queue of announcements is bounded: what it refuses is an error, and its end is harmless.
void too_many_announcements_are_refused() {
    WriterPointer w = open_writer(options_for(""));
    uint64_t refused = 0;
    for (uint64_t n = 0; n < 9000; n++) {
        sonde_request r{};
        r.number = n;
        refused += sonde_open_request(w.get(), &r) == SONDE_FULL;
    }
    CHECK(refused > 0);
    CHECK_EQUAL(stats_of(w.get()).control_lost, refused);
}

} // namespace

int main() {
    std::printf("writer_test\n");
    RUN(rows_reach_the_agent_and_the_end_is_clean);
    RUN(a_full_ring_drops_counts_and_names);
    RUN(a_step_larger_than_the_ring_is_oversize);
    RUN(a_new_agent_gets_what_is_alive_and_reads_again_from_the_release);
    RUN(an_abort_hits_only_the_request_that_it_means);
    RUN(complete_waits_then_gives_up_then_waits_again);
    RUN(detached_copies_complete_later_in_any_order);
    RUN(a_stuck_copy_is_aborted_and_its_span_kept_out_of_use);
    RUN(a_detached_copy_may_outlive_its_writer);
    RUN(a_forked_child_is_refused_and_hides_no_death);
    RUN(wrong_uses_are_refused_with_a_sentence);
    RUN(too_many_announcements_are_refused);
}
