// The journal, and what a successor tells of it. A copy of a living writer's journal is what its death would leave.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "../src/dead.h"
#include "writer_fixture.h"

using namespace sonde;

namespace {

namespace fs = std::filesystem;

std::string new_folder() {
    static int n = 0;
    const std::string path = "/tmp/sonde-journal-" + std::to_string(getpid()) + "-" + std::to_string(n++) + "/st[a]te*";
    fs::remove_all(fs::path(path).parent_path());
    fs::create_directories(path);
    return path;
}

// A folder that goes with the test.
struct Folder {
    Folder() : path(new_folder()) {}
    ~Folder() { fs::remove_all(fs::path(path).parent_path()); }
    Folder(const Folder &) = delete;
    Folder &operator=(const Folder &) = delete;
    bool empty() const { return fs::is_empty(path); }

    std::string path;
};

std::string read_file(const std::string &path) {
    std::ifstream in(path, std::ios::binary);
    CHECK(in.good());
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void write_file(const std::string &path, const std::string &bytes) { std::ofstream(path, std::ios::binary) << bytes; }

sonde_writer_options journal_options(const std::string &socket, const Folder &folder) {
    sonde_writer_options o = options_for(socket);
    o.journal_dir = folder.path.c_str();
    return o;
}

// What a successor tells of the journals of rank 0 in a folder. They stay where they are.
std::vector<Obituary> tell(const std::string &folder, std::vector<std::string> *logged = nullptr) {
    ForkGuard guard;
    DeadQueue queue(guard, [&](const std::string &text) {
        if (logged != nullptr) logged->push_back(text);
    });
    CHECK_EQUAL(queue.collect(folder, 0), SONDE_OK);
    std::vector<Obituary> out;
    while (queue.ahead(1)) {
        out.push_back(queue.front());
        queue.sent(0, true);
    }
    return out;
}

// What would be told if the writers of a folder died now.
std::vector<Obituary> tell_of_dead(const Folder &folder) {
    const Folder copy;
    fs::copy(folder.path, copy.path, fs::copy_options::recursive);
    return tell(copy.path);
}

std::vector<std::string> describe(const std::vector<Obituary> &told) {
    static const char *const kinds[] = {"end",   "model",   "layout", "open",     "step", "capture",
                                        "amend", "missing", "close",  "obituary", "bye"};
    std::vector<std::string> out;
    for (const Obituary &o : told)
        out.push_back(std::to_string(o.seq) + " " + kinds[o.kind] +
                      ((o.flags & obituary_never_put) != 0 ? " never put" : ""));
    return out;
}

void check_told(const std::vector<Obituary> &told, const std::vector<std::string> &want) {
    const std::vector<std::string> got = describe(told);
    if (got == want) return;
    for (const std::string &line : got) std::fprintf(stderr, "told: %s\n", line.c_str());
    CHECK(got == want);
}

void the_golden_journal_is_written_and_told() {
    const Folder folder;
    const uint64_t epoch = 0x1122334455667788;
    const std::string golden = read_file(RING2_TESTDATA "journal_v1.bin");
    Bytes model, step, second, end;
    encode_model(model, {"m", "", "", "", "", "", 2, 0, 0});
    const StepLayout layout{0, 0, 2};
    const sonde_range range{7, 0, 3, 0, 0, 1, 0, 1}, next{7, 3, 1, 0, 0, 0, 0, 0};
    encode_step(step, 0, &layout, 1, &range, 1);
    encode_end(end, {7, 0, 1, 0, 0, 0, 0, 0}, 0);
    encode_step(second, 1, nullptr, 0, &next, 1);
    {
        ForkGuard guard;
        Journal journal(guard, folder.path, epoch, 3);
        CHECK_EQUAL(journal.open(), SONDE_OK);
        const auto append = [&](uint64_t ordinal, uint64_t seq, uint16_t kind, uint16_t flags, const Bytes &b) {
            journal.append(ordinal, seq, kind, flags, b.data(), b.size());
        };
        append(journal.next_ordinal(), 0, RING2_KIND_MODEL, 0, model);
        append(journal.next_ordinal(), 1, RING2_KIND_STEP, 0, step);
        append(journal.next_ordinal(), 3, RING2_KIND_REQUEST_END, obituary_never_put, end);
        append(journal.next_ordinal(), 3, RING2_KIND_STEP, obituary_never_put, second);
        append(3, 3, RING2_KIND_REQUEST_END, 0, end);
    }
    CHECK(read_file(segment_path(journal_folder(folder.path, 3, epoch), 1)) + "torn" == golden);
    fs::create_directories(journal_folder(folder.path, 0, epoch));
    write_file(segment_path(journal_folder(folder.path, 0, epoch), 1), golden);
    const std::vector<Obituary> told = tell(folder.path);
    check_told(told, {"0 model", "1 step", "3 step never put", "3 close", "4 end"});
    CHECK(told[0].payload == model && told[1].payload == step && told[2].payload == second && told[3].payload == end);
    CHECK_EQUAL(told[0].flags, obituary_first);
    for (const Obituary &o : told) CHECK_EQUAL(o.dead_epoch, epoch);
}

void what_was_in_the_ring_and_what_never_was_is_told() {
    const Folder folder;
    sonde_writer_options o = journal_options("", folder);
    o.desc_count = 8;
    const WriterPointer w = open_writer(o);
    const uint32_t layout = define_rows(w.get());
    open_request(w.get(), 1);
    for (uint32_t i = 0; i < 3; i++) write_step(w.get(), layout, range_at(1, i, 1));
    for (uint64_t n = 5; n < 7; n++) open_request(w.get(), n);
    write_step(w.get(), layout, range_at(1, 3, 1));
    end_request(w.get(), 5);
    check_told(tell_of_dead(folder), {"0 layout", "1 open", "2 step", "4 step", "6 step", "7 open", "8 open never put",
                                      "8 step never put", "8 close never put", "8 end"});
}

void what_waited_and_then_got_its_room_is_told_once() {
    const Folder folder;
    const std::string path = socket_path();
    sonde_writer_options o = journal_options(path, folder);
    o.desc_count = 8;
    const WriterPointer w = open_writer(o);
    const uint32_t layout = define_rows(w.get());
    open_request(w.get(), 1);
    for (uint32_t i = 0; i < 3; i++) write_step(w.get(), layout, range_at(1, i, 1));
    for (uint64_t n = 5; n < 7; n++) open_request(w.get(), n);
    write_step(w.get(), layout, range_at(1, 3, 1));
    Agent agent(path);
    CHECK(agent.accept(5000));
    Seen seen;
    CHECK(drain(agent, &seen, 300) == Agent::Next::timeout);
    check_told(tell_of_dead(folder), {"0 layout", "1 open", "2 step", "4 step", "6 step", "7 open", "8 step never put",
                                      "8 open", "9 missing", "10 end"});
}

void a_torn_or_spoilt_tail_ends_a_segment_and_nothing_else() {
    const Folder folder;
    const WriterPointer w = open_writer(journal_options("", folder));
    const uint32_t layout = define_rows(w.get());
    open_request(w.get(), 1);
    for (uint32_t i = 0; i < 12; i++) write_step(w.get(), layout, range_at(1, i, 1));
    const std::string name = segment_path(journal_folder(folder.path, 0, sonde_writer_epoch(w.get())), 1);
    const std::string whole = read_file(name);
    const Folder copy;
    const std::string at = journal_folder(copy.path, 0, sonde_writer_epoch(w.get()));
    fs::create_directories(at);
    std::mt19937_64 random = seeded_random();
    for (int run = 0; run < 400; run++) {
        std::string spoilt = whole;
        if (run % 2 == 0) {
            spoilt.resize(spoilt.size() - 1 - random() % 60);
        } else {
            spoilt[random() % spoilt.size()] ^= static_cast<char>(1U << random() % 8);
        }
        write_file(segment_path(at, 1), spoilt);
        std::vector<std::string> logged;
        const std::vector<Obituary> told = tell(copy.path, &logged);
        CHECK(told.size() < 2 + 12 + 1);
        CHECK(!logged.empty() || run % 2 == 0); // a cut between two records is an end like any other
        for (size_t i = 0; i + 1 < told.size(); i++) CHECK(told[i].seq == (i < 2 ? i : 2 * i - 2));
        fs::create_directories(at); // one that says nothing was removed
    }
    for (const std::string &garbage : {std::string(), std::string("R2JL"), std::string(100, 'x')}) {
        write_file(segment_path(at, 1), garbage);
        CHECK(tell(copy.path).empty());
        CHECK(!fs::exists(at));
        fs::create_directories(at);
    }
    write_file(copy.path + "/rank0-file", "no folder");
    CHECK(tell(copy.path).empty());
}

// Reads and releases everything; the journal then may forget it.
void release_all(Agent &agent) {
    Record r;
    while (agent.next(&r, 0) == Agent::Next::record) agent.release(r.seq + 1);
}

void the_journal_is_bounded_while_the_reader_keeps_up() {
    const Folder folder;
    const std::string path = socket_path();
    sonde_writer_options o = journal_options(path, folder);
    o.data_bytes = 4U << 20;
    const WriterPointer w = open_writer(o);
    Agent agent(path);
    CHECK(agent.accept(5000));
    const uint32_t layout = define_rows(w.get());
    open_request(w.get(), 1);
    std::vector<sonde_range> ranges(2000); // steps of 64 KB
    for (uint32_t i = 0; i < ranges.size(); i++) ranges[i] = {1, i, 1, 0, SONDE_DECODE, 0, 0, 0};
    const std::string at = journal_folder(folder.path, 0, sonde_writer_epoch(w.get()));
    uint64_t most = 0, last = 0;
    for (int i = 0; i < 600; i++) {
        if (i == 300) open_request(w.get(), 2);
        CHECK_EQUAL(sonde_begin_step(w.get(), ranges.data(), 2000, &layout, 1, nullptr, 0, nullptr), SONDE_OK);
        CHECK_EQUAL(sonde_commit_step(w.get()), SONDE_OK);
        release_all(agent);
        if (i % 4 == 0) sleep_ns(6000000); // a tick
        uint64_t files = 0;
        for (const auto &f : fs::directory_iterator(at)) {
            files++;
            last = std::max<uint64_t>(last, std::stoull(f.path().filename()));
        }
        most = std::max(most, files);
    }
    sonde_journal_stats s{};
    CHECK_EQUAL(sonde_writer_journal_stats(w.get(), &s), SONDE_OK);
    CHECK(last >= 4);
    CHECK(most <= 3);
    CHECK(s.unnamed == 0 && s.bytes > 0 && s.bytes < 4 * Journal::segment_bytes);
    const std::vector<std::string> told = describe(tell_of_dead(folder));
    CHECK(told[0] == "0 layout" && told[1] == "1 open");
    CHECK_EQUAL(std::count_if(told.begin(), told.end(), [](const auto &t) { return t.ends_with("open"); }), 2);
}

void a_full_journal_counts_and_goes_on() {
    const Folder folder;
    ForkGuard guard;
    Journal journal(guard, folder.path, 5, 0);
    CHECK_EQUAL(journal.open(), SONDE_OK);
    const Bytes large(max_obituary_payload);
    uint64_t n = 0;
    for (; n < Journal::max_bytes / large.size(); n++)
        journal.append(n, n, RING2_KIND_STEP, 0, large.data(), large.size());
    CHECK_EQUAL(journal.unnamed(), 0);
    CHECK(journal.full(0));
    for (; journal.unnamed() < 3; n++) journal.append(n, n, RING2_KIND_STEP, 0, large.data(), large.size());
    CHECK(journal.bytes() <= Journal::max_bytes);
    NewSegment made;
    CHECK_EQUAL(journal.next_segment({}, &made), SONDE_OK);
    journal.begin(std::move(made));
    for (const std::string &path : journal.settle(true, 9, 9)) fs::remove(path);
    journal.append(n, n, RING2_KIND_STEP, 0, large.data(), large.size());
    CHECK_EQUAL(journal.unnamed(), 3);
    CHECK(journal.bytes() < 2 * large.size());
}

void the_oldest_of_too_many_dead_journals_are_forgotten() {
    const Folder folder;
    for (uint64_t n = 1; n <= DeadQueue::max_dead + 5; n++) {
        const std::string at = journal_folder(folder.path, 0, n);
        fs::create_directories(at);
        const JournalHeader h = journal_header(n, 0);
        write_file(segment_path(at, 1), {reinterpret_cast<const char *>(&h), sizeof h});
        fs::last_write_time(at, fs::file_time_type::clock::now() + std::chrono::seconds(n));
    }
    fs::create_directories(journal_folder(folder.path, 1, 7)); // of another rank
    const std::vector<Obituary> told = tell(folder.path);
    CHECK_EQUAL(told.size(), DeadQueue::max_dead);
    CHECK_EQUAL(told[1].dead_epoch, 7);
    CHECK(fs::exists(journal_folder(folder.path, 1, 7)));
}

// Reads what a successor says of the dead, until the end of so many journals.
std::vector<Obituary> obituaries(Agent &agent, size_t journals, bool release) {
    std::vector<Obituary> out;
    Record r;
    for (size_t ends = 0; ends < journals;) {
        CHECK(agent.next(&r, 5000) == Agent::Next::record);
        if (release) agent.release(r.seq + 1);
        if (r.kind != RING2_KIND_OBITUARY) continue;
        BodyReader b(r.payload, r.bytes);
        Obituary o;
        o.dead_epoch = b.take<uint64_t>();
        o.seq = b.take<uint64_t>();
        o.kind = b.take<uint16_t>();
        o.flags = b.take<uint16_t>();
        CHECK(!b.bad());
        o.payload.assign(b.at(), b.at() + b.left());
        ends += o.kind == 0;
        out.push_back(o);
    }
    return out;
}

// A successor that dies before its reader released the obituaries leaves them to the next one; so does an agent.
void obituaries_are_told_again_until_they_are_released() {
    const Folder folder, dead;
    const std::string path = socket_path();
    uint64_t epoch = 0;
    {
        const WriterPointer first = open_writer(journal_options("", folder));
        epoch = sonde_writer_epoch(first.get());
        const uint32_t layout = define_rows(first.get());
        open_request(first.get(), 1);
        write_step(first.get(), layout, range_at(1, 0, 1));
        fs::copy(folder.path, dead.path, fs::copy_options::recursive);
    }
    const std::vector<std::string> want = {"0 layout", "1 open", "2 step", "4 end"};
    {
        const WriterPointer w = open_writer(journal_options(path, dead));
        for (int run = 0; run < 2; run++) { // two agents that die
            Agent agent(path);
            CHECK(agent.accept(5000));
            const std::vector<Obituary> told = obituaries(agent, 1, false);
            check_told(told, want);
            for (size_t i = 0; i < told.size(); i++) CHECK_EQUAL(told[i].flags, i == 0 ? obituary_first : 0);
        }
    } // it goes without a word that was released
    Agent agent(path);
    const WriterPointer w = open_writer(journal_options(path, dead));
    CHECK(agent.accept(5000));
    std::vector<Obituary> told = obituaries(agent, 2, true);
    CHECK(told[0].dead_epoch == epoch && told.back().dead_epoch != epoch);
    const auto end = std::find_if(told.begin(), told.end(), [&](const Obituary &o) { return o.dead_epoch != epoch; });
    check_told({told.begin(), end}, want);
    std::thread reading([&] {
        Seen seen;
        CHECK(drain(agent, &seen, 5000) == Agent::Next::end);
    });
    CHECK_EQUAL(sonde_writer_close(w.get(), 5 * second), SONDE_OK);
    reading.join();
    CHECK(dead.empty());
    sonde_journal_stats s{};
    CHECK_EQUAL(sonde_writer_journal_stats(w.get(), &s), SONDE_OK);
    CHECK_EQUAL(s.obituaries_sent, told.size());
}

// Obituaries wait for room: live captures and control records come first.
void obituaries_do_not_take_the_room_of_the_living() {
    const Folder folder, dead;
    const std::string path = socket_path();
    {
        sonde_writer_options o = journal_options("", folder);
        o.desc_count = 1024;
        o.data_bytes = 1U << 20;
        const WriterPointer first = open_writer(o);
        const uint32_t layout = define_rows(first.get());
        open_request(first.get(), 1);
        for (uint32_t i = 0; i < 200; i++) write_step(first.get(), layout, range_at(1, i, 1));
        fs::copy(folder.path, dead.path, fs::copy_options::recursive);
    }
    const WriterPointer w = open_writer(journal_options(path, dead));
    Agent agent(path);
    CHECK(agent.accept(5000));
    sonde_journal_stats s{};
    for (int i = 0; i < 1000 && s.obituaries_sent == 0; i++) {
        sleep_ns(5000000);
        CHECK_EQUAL(sonde_writer_journal_stats(w.get(), &s), SONDE_OK);
    }
    sleep_ns(50000000);
    CHECK(s.obituaries_sent > 0);
    CHECK(stats_of(w.get()).claim <= 32);
    CHECK_EQUAL(write_step(w.get(), define_rows(w.get()), range_at(1, 0, 1)), SONDE_CAPTURED);
}

void the_journal_of_a_living_writer_is_left_alone() {
    const Folder folder;
    const WriterPointer w = open_writer(journal_options("", folder));
    define_rows(w.get());
    CHECK(tell(folder.path).empty());
    CHECK(!folder.empty());
}

// A forked child, as of a data loader, that outlives the engine must not look like it.
void a_forked_child_does_not_keep_a_dead_journal_locked() {
    const Folder folder;
    int ready[2];
    CHECK(pipe(ready) == 0);
    const pid_t engine = fork();
    if (engine == 0) {
        sonde_writer *w = nullptr;
        const sonde_writer_options o = journal_options("", folder);
        if (sonde_writer_open(&o, &w) != SONDE_OK) _exit(1);
        define_rows(w);
        const pid_t child = fork();
        if (child == 0) {
            alarm(20); // it outlives its parent
            for (;;) pause();
        }
        [[maybe_unused]] const ssize_t n = write(ready[1], &child, sizeof child);
        kill(getpid(), SIGKILL);
    }
    pid_t child = 0;
    CHECK(read(ready[0], &child, sizeof child) == sizeof child);
    CHECK(waitpid(engine, nullptr, 0) == engine);
    check_told(tell(folder.path), {"0 layout", "1 end"});
    kill(child, SIGKILL);
    close(ready[0]);
    close(ready[1]);
}

void options_of_older_and_newer_headers_are_understood() {
    const Folder folder;
    struct Newer {
        sonde_writer_options o;
        uint64_t later;
    } newer{journal_options("", folder), 0};
    sonde_writer *w = nullptr;
    newer.o.struct_bytes = sizeof newer;
    CHECK_EQUAL(sonde_writer_open(&newer.o, &w), SONDE_OK);
    sonde_writer_free(w);
    newer.later = 1;
    CHECK_EQUAL(sonde_writer_open(&newer.o, &w), SONDE_INVALID);
    sonde_writer_options older = options_for("");
    older.struct_bytes = offsetof(sonde_writer_options, journal_dir);
    older.journal_dir = reinterpret_cast<const char *>(1); // not there in its header: never looked at
    CHECK_EQUAL(sonde_writer_open(&older, &w), SONDE_OK);
    sonde_writer_free(w);
    older.struct_bytes--;
    CHECK_EQUAL(sonde_writer_open(&older, &w), SONDE_INVALID);
}

void a_folder_that_cannot_be_used_is_an_error() {
    const Folder folder;
    write_file(folder.path + "/file", "");
    sonde_writer_options o = options_for("");
    const std::string inside = folder.path + "/file/state";
    o.journal_dir = inside.c_str();
    sonde_writer *w = nullptr;
    CHECK_EQUAL(sonde_writer_open(&o, &w), SONDE_SYSTEM);
    CHECK(w == nullptr && std::string(sonde_last_error()).find(inside) != std::string::npos);
}

} // namespace

int main() {
    std::printf("journal_test\n");
    RUN(the_golden_journal_is_written_and_told);
    RUN(what_was_in_the_ring_and_what_never_was_is_told);
    RUN(what_waited_and_then_got_its_room_is_told_once);
    RUN(a_torn_or_spoilt_tail_ends_a_segment_and_nothing_else);
    RUN(the_journal_is_bounded_while_the_reader_keeps_up);
    RUN(a_full_journal_counts_and_goes_on);
    RUN(the_oldest_of_too_many_dead_journals_are_forgotten);
    RUN(obituaries_are_told_again_until_they_are_released);
    RUN(obituaries_do_not_take_the_room_of_the_living);
    RUN(the_journal_of_a_living_writer_is_left_alone);
    RUN(a_forked_child_does_not_keep_a_dead_journal_locked);
    RUN(options_of_older_and_newer_headers_are_understood);
    RUN(a_folder_that_cannot_be_used_is_an_error);
}
