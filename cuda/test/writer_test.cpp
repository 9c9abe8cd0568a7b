// The library through its C interface, with an agent in the same process. Built a second time with AddressSanitizer.

#include <atomic>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "writer_fixture.h"

using namespace sonde;

namespace {

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

Bytes bytes_of_hex(const std::string &hex) {
    Bytes out;
    for (size_t i = 0; i + 1 < hex.size(); i += 2)
        out.push_back(static_cast<uint8_t>(std::stoul(hex.substr(i, 2), nullptr, 16)));
    return out;
}

// The CAPTURE of the vectors that every writer shares, with an entry whose rows have their own lengths.
Bytes capture_vector() {
    std::ifstream in(RING2_TESTDATA "vectors.json");
    const std::string json{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    size_t at = json.find("\"hex\": \"", json.find("\"kind\": \"CAPTURE\""));
    CHECK(at != std::string::npos);
    at += 8;
    return bytes_of_hex(json.substr(at, json.find('"', at) - at));
}

void a_capture_with_ragged_rows_equals_its_vector() {
    const std::string path = socket_path();
    Agent agent(path);
    WriterPointer w = open_writer(options_for(path));
    CHECK(agent.accept(5000));
    const sonde_layout_entry entries[] = {{"resid_post", 12, SONDE_BF16, SONDE_SELECT_ALL, 0, 1, {2}, 1, 2},
                                          {"logits", -1, SONDE_F32, SONDE_SELECT_SAMPLED, 0, 2, {1, 3}, 0, 1},
                                          {"attn_row", 0, SONDE_U8, SONDE_SELECT_ALL, 1, 0, {}, 0, 1}};
    uint32_t layout = 0;
    CHECK_EQUAL(sonde_define_layout(w.get(), entries, 3, &layout), SONDE_OK);
    write_step(w.get(), define_rows(w.get()), range_at(1, 0, 4)); // leaves bytes that must not shine through later
    const sonde_range ranges[] = {{3, 0, 2, 0, 0, 0, 0, 1}, {4, 17, 1, 1, 2, 1, 0, 1}};
    const sonde_ragged wrong{0, 1, 3}, ragged{0, 2, 3};
    CHECK_EQUAL(sonde_begin_step(w.get(), ranges, 2, &layout, 1, &wrong, 1, nullptr), SONDE_INVALID);
    CHECK_EQUAL(sonde_begin_step(w.get(), ranges, 2, &layout, 1, &ragged, 1, nullptr), SONDE_OK);
    const uint8_t resid[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, lengths[] = {0, 1, 3, 3};
    const float logits[] = {1, 2, 3};
    const Bytes want = capture_vector();
    uint64_t bytes = 0;
    std::memcpy(sonde_step_span(w.get(), 0, 0, &bytes), resid, sizeof resid);
    CHECK_EQUAL(bytes, sizeof resid);
    std::memcpy(sonde_step_span(w.get(), 0, 1, &bytes), logits, sizeof logits);
    auto *rows = static_cast<uint8_t *>(sonde_step_span(w.get(), 0, 2, &bytes));
    CHECK_EQUAL(bytes, 4 * 8 + 3);
    for (size_t i = 0; i < 4; i++) {
        const uint64_t offset = lengths[i];
        std::memcpy(rows + 8 * i, &offset, sizeof offset);
    }
    std::memcpy(rows + 32, "\xaa\xbb\xbb", 3);
    CHECK_EQUAL(sonde_commit_step(w.get()), SONDE_OK);
    Record r;
    do CHECK(agent.next(&r, 5000) == Agent::Next::record);
    while (r.kind != RING2_KIND_CAPTURE || r.layout != layout);
    CHECK_EQUAL(r.bytes, align_up(want.size()));
    CHECK(std::memcmp(r.payload, want.data(), want.size()) == 0);
    for (size_t i = want.size(); i < r.bytes; i++) CHECK_EQUAL(r.payload[i], 0);
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
    RUN(a_capture_with_ragged_rows_equals_its_vector);
    RUN(a_full_ring_drops_counts_and_names);
    RUN(a_step_larger_than_the_ring_is_oversize);
    RUN(a_new_agent_gets_what_is_alive_and_reads_again_from_the_release);
    RUN(an_abort_hits_only_the_request_that_it_means);
    RUN(complete_waits_then_gives_up_then_waits_again);
    RUN(wrong_uses_are_refused_with_a_sentence);
    RUN(too_many_announcements_are_refused);
}
