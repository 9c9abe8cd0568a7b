// Detached copies, which end later, never, or after their writer; and forked children. Built a second time with
// AddressSanitizer.

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "writer_fixture.h"

using namespace sonde;

namespace {

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

} // namespace

int main() {
    std::printf("copies_test\n");
    RUN(detached_copies_complete_later_in_any_order);
    RUN(a_stuck_copy_is_aborted_and_its_span_kept_out_of_use);
    RUN(a_detached_copy_may_outlive_its_writer);
    RUN(a_forked_child_is_refused_and_hides_no_death);
}
