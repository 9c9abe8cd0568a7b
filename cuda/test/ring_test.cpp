// The ring on heap memory: the golden ring and the vectors that every writer shares, and random steps against the
// reader. Built a second time with AddressSanitizer, where the memory behind both parts of the ring is poisoned.

#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <string>

#include "../src/core.h"
#include "../src/payload.h"
#include "check.h"
#include "heap_ring.h"
#include "reader.h"

using namespace sonde;

namespace {

uint64_t fake_clock = 0;
uint64_t tick_clock() { return ++fake_clock; }

std::string read_file(const char *path) {
    std::ifstream in(path, std::ios::binary);
    CHECK(in.good());
    return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// What testdata/peer/peer.c says, whose image is the golden ring.
Layout golden_layout() {
    Layout l;
    l.entries.push_back({"resid_post", 3, SONDE_F32, SONDE_SELECT_ALL, false, {8}, 0, 1, 32});
    l.entries.push_back({"token_ids", -1, SONDE_I32, SONDE_SELECT_ALL, false, {}, 0, 1, 4});
    l.entries.push_back({"logits", -1, SONDE_F32, SONDE_SELECT_SAMPLED, false, {2}, 0, 1, 8});
    return l;
}

ring2_config golden_config() {
    ring2_config c{};
    c.desc_count = 16;
    c.data_bytes = 4096;
    c.epoch = 0x0102030405060709;
    c.reserve_descs = 2;
    c.reserve_bytes = 256;
    c.producer_pid = 42;
    c.rank_count = 1;
    c.mode = 1;
    c.wall_minus_mono_ns = 4096;
    std::memcpy(c.engine_instance, "stranger-0", 10);
    return c;
}

void golden_rows(uint8_t *out, uint32_t first, uint32_t count) {
    for (uint32_t i = 0; i < count * 8; i++) {
        const float v = static_cast<float>(first + i / 8) + static_cast<float>(i % 8) / 16;
        std::memcpy(out + 4 * i, &v, 4);
    }
    out += align_up(32 * uint64_t{count});
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t id = 1000 + first + i;
        std::memcpy(out + 4 * i, &id, 4);
    }
    out += align_up(4 * uint64_t{count});
    for (uint32_t i = 0; i < 2; i++) {
        const float v = static_cast<float>(2 * (first + count - 1) + i);
        std::memcpy(out + 4 * i, &v, 4);
    }
}

void golden_step(WriterCore &core, const Layout &layout, uint64_t step) {
    const uint32_t count = step == 0 ? 5 : 1;
    const uint32_t first = step == 0 ? 0 : 4 + static_cast<uint32_t>(step);
    const sonde_range range{1, first, count, 0, static_cast<uint8_t>(step != 0), 1, 0, 1};
    Plan plan;
    plan.layout = &layout;
    plan.token_rows = count;
    plan.sampled_rows = 1;
    plan.ledger_rows = 2 * uint64_t{count} + 1;
    plan.bytes = align_up(32 * uint64_t{count}) + align_up(4 * uint64_t{count}) + 64;
    Bytes payload;
    uint64_t pos = 0;
    CHECK(core.plan_step(&plan, 1, step_bytes(1, 1), &pos));
    const StepLayout outcome{0, 0, plan.seq};
    encode_step(payload, step, &outcome, 1, &range, 1);
    core.claim_step(&plan, 1, pos, step, payload.data(), payload.size());
    golden_rows(core.ring().span(plan.pos), first, count);
    core.finish(plan, false);
    core.end_step();
}

void put_control(WriterCore &core, uint16_t kind, const Bytes &payload) {
    CHECK(core.fits_control(payload.size()));
    core.put_control(kind, 0, payload.data(), payload.size());
}

// Two writers that share no code agree on every byte of a ring.
void the_golden_ring_is_written_byte_for_byte() {
    HeapRing memory(16, 4096);
    const Layout layout = golden_layout();
    fake_clock = 0;
    WriterCore core(memory.ring(), golden_config(), tick_clock, 0, 0);
    Bytes b;
    encode_model(b, {"stranger", "r1", "sha256:00", "none", "peer", "1", 4, 8, 2048});
    put_control(core, RING2_KIND_MODEL, b);
    encode_layout(b, layout);
    put_control(core, RING2_KIND_LAYOUT, b);
    const sonde_label label{"written_in", "C"};
    sonde_request request{1, "req-1", "peer-1", "acme", "", "", 0, 5, 3, 1, tick_clock(), &label, 1, 0};
    encode_request(b, request, 0);
    put_control(core, RING2_KIND_REQUEST_OPEN, b);
    for (uint64_t step = 0; step < 3; step++) golden_step(core, layout, step);
    encode_end(b, {1, 5, 3, 0, 1, SONDE_LENGTH, 0, tick_clock()}, 0);
    put_control(core, RING2_KIND_REQUEST_END, b);
    put_control(core, RING2_KIND_BYE, {});
    core.store_closing();
    const std::string want = read_file(RING2_TESTDATA "ring_v1.bin"), got = memory.image();
    CHECK_EQUAL(got.size(), want.size());
    for (size_t i = 0; i < want.size(); i++) {
        if (got[i] == want[i]) continue;
        std::fprintf(stderr, "image differs at byte %zu\n", i);
        std::exit(1);
    }
}

// A reader of this or any later version must understand the rings of version 1.
void the_golden_ring_is_read() {
    HeapRing memory(16, 4096);
    memory.load(read_file(RING2_TESTDATA "ring_v1.bin"));
    ring2_config config{};
    CHECK(check_config(memory.ctl(), ctl_bytes(16), 4096, &config) == nullptr);
    CHECK_EQUAL(config.epoch, 0x0102030405060709);
    ReaderCore reader(memory.ring(), 0);
    const uint16_t kinds[] = {RING2_KIND_MODEL,   RING2_KIND_LAYOUT,      RING2_KIND_REQUEST_OPEN, RING2_KIND_STEP,
                              RING2_KIND_CAPTURE, RING2_KIND_STEP,        RING2_KIND_CAPTURE,      RING2_KIND_STEP,
                              RING2_KIND_CAPTURE, RING2_KIND_REQUEST_END, RING2_KIND_BYE};
    Record r;
    for (const uint16_t kind : kinds) {
        CHECK(reader.poll(&r) == ReaderCore::Poll::record);
        CHECK_EQUAL(r.kind, kind);
        if (kind != RING2_KIND_CAPTURE) continue;
        uint8_t want[512] = {};
        golden_rows(want, r.step == 0 ? 0 : 4 + static_cast<uint32_t>(r.step), r.rows);
        CHECK(std::memcmp(want, r.payload, align_up(32 * uint64_t{r.rows}) + align_up(4 * uint64_t{r.rows}) + 8) == 0);
    }
    CHECK(reader.poll(&r) == ReaderCore::Poll::nothing);
}

// Cosmic rays, broken DMA: a flipped bit in a descriptor is never shown as a record.
void a_flipped_bit_of_a_descriptor_is_found() {
    const std::string image = read_file(RING2_TESTDATA "ring_v1.bin");
    HeapRing memory(16, 4096);
    int found = 0;
    for (size_t bit = 64; bit < 8 * sizeof(ring2_desc); bit++) { // all but the commit word
        memory.load(image);
        reinterpret_cast<uint8_t *>(&memory.ring().desc(3))[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
        ReaderCore reader(memory.ring(), 0);
        Record r;
        int read = 0;
        while (reader.poll(&r) == ReaderCore::Poll::record) read++;
        CHECK_EQUAL(read, 3);
        found += reader.why_corrupt() != nullptr;
    }
    CHECK_EQUAL(found, 8 * sizeof(ring2_desc) - 64);
}

// The hex of one payload in vectors.json.
std::string vector_hex(const std::string &json, const std::string &kind) {
    size_t at = json.find("\"kind\": \"" + kind + "\"");
    CHECK(at != std::string::npos);
    at = json.find("\"hex\": \"", at) + 8;
    return json.substr(at, json.find('"', at) - at);
}

void check_vector(const char *kind, const Bytes &got) {
    const std::string want = vector_hex(read_file(RING2_TESTDATA "vectors.json"), kind);
    std::string hex;
    for (const uint8_t byte : got) {
        hex += "0123456789abcdef"[byte >> 4];
        hex += "0123456789abcdef"[byte & 15];
    }
    if (hex == want) return;
    std::fprintf(stderr, "%s is\n%s, want\n%s\n", kind, hex.c_str(), want.c_str());
    std::exit(1);
}

void every_payload_equals_its_vector() {
    Bytes b;
    encode_model(b, {"qwen3-8b", "main", "sha256:ab12", "bf16", "vllm", "0.11.0", 36, 4096, 151936});
    check_vector("MODEL", b);
    Layout l;
    l.id = 7;
    l.entries.push_back({"resid_post", 12, SONDE_BF16, SONDE_SELECT_ALL, false, {2}, 1, 2, 4});
    l.entries.push_back({"logits", -1, SONDE_F32, SONDE_SELECT_SAMPLED, false, {1, 3}, 0, 1, 12});
    l.entries.push_back({"attn_row", 0, SONDE_U8, SONDE_SELECT_ALL, true, {}, 0, 1, 1});
    encode_layout(b, l);
    check_vector("LAYOUT", b);
    const sonde_label labels[] = {{"team", "safety"}, {"", nullptr}};
    encode_request(b,
                   {9007199254740993, "chatcmpl-\xc3\xa9", "seq-4", "acme", "lora-a",
                    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", 1, 5, 256, 1, 1700000000123456789,
                    labels, 2, 0},
                   0);
    check_vector("REQUEST_OPEN", b);
    const StepLayout layouts[] = {{7, 0, 1001}, {8, 2, 0}};
    const sonde_range ranges[] = {{3, 0, 2, 0, 0, 0, 0, 3}, {4, 17, 1, 1, 2, 1, 0, 1}};
    encode_step(b, 99, layouts, 2, ranges, 2);
    check_vector("STEP", b);
    const sonde_amend_range amended[] = {{4, 17, 2, 1, 1}, {3, 0, 1, 0, 2}};
    encode_amend(b, 99, amended, 2);
    check_vector("AMEND", b);
    const MissingRange missing{4, 20, 10, 0, 7, 4, 27, 100, 111};
    encode_missing(b, &missing, 1);
    check_vector("MISSING", b);
    encode_end(b, {4, 17, 12, 16, 2, 5, 0, 1700000001000000000}, 0);
    check_vector("REQUEST_END", b);
    check_vector("BYE", {});
}

void checksums_are_those_of_the_page() {
    CHECK_EQUAL(crc32c("123456789", 9), 0xe3069283);
    CHECK_EQUAL(crc32c("", 0), 0);
}

// One random run: claims, aborts, detached and stuck copies, releases; every payload is read as it was written.
void random_run(std::mt19937_64 &random, uint64_t start_seq, uint64_t start_pos) {
    HeapRing memory(32, 16384);
    ring2_config config = golden_config();
    config.desc_count = 32;
    config.data_bytes = 16384;
    config.reserve_descs = 4;
    config.reserve_bytes = 1024;
    WriterCore core(memory.ring(), config, tick_clock, start_seq, start_pos);
    ReaderCore reader(memory.ring(), start_seq);
    Layout layout;
    layout.entries.push_back({"x", 0, SONDE_U8, SONDE_SELECT_ALL, false, {}, 0, 1, 1});
    uint64_t dropped = 0, captured = 0, read = 0;
    for (uint64_t step = 0; step < 3000; step++) {
        Plan plan;
        plan.layout = &layout;
        plan.token_rows = plan.ledger_rows = plan.bytes = random() % 9000;
        Bytes payload;
        uint64_t pos = 0;
        if (core.plan_step(&plan, 1, step_bytes(1, 1), &pos)) {
            const StepLayout outcome{0, static_cast<uint8_t>(plan.outcome), plan.seq};
            const sonde_range range{1, 0, 1, 0, 0, 0, 0, 1};
            encode_step(payload, step, &outcome, 1, &range, 1);
            core.claim_step(&plan, 1, pos, step, payload.data(), payload.size());
            dropped += plan.outcome != SONDE_CAPTURED;
            if (plan.outcome == SONDE_CAPTURED) {
                captured++;
                std::memset(memory.writable(plan.pos, plan.bytes), static_cast<int>(step % 251), plan.bytes);
                core.finish(plan, false);
            }
            core.end_step();
        }
        Record r;
        while (random() % 3 != 0 && reader.poll(&r) == ReaderCore::Poll::record) {
            if (r.kind != RING2_KIND_CAPTURE) continue;
            read++;
            for (uint32_t i = 0; i < r.bytes; i++) CHECK_EQUAL(r.payload[i], r.step % 251);
        }
        CHECK(reader.why_corrupt() == nullptr);
        if (random() % 2 != 0) reader.set_release(reader.next() - random() % 3);
        core.refresh();
    }
    CHECK(captured > 100 && read > 100 && dropped > 100);
    CHECK_EQUAL(core.counters().refused_releases, 0);
}

void random_steps_arrive_as_they_were_written() {
    std::mt19937_64 random = seeded_random();
    for (int i = 0; i < 5; i++) random_run(random, 0, 0);
    random_run(random, 0xffffffffffffff00, 0xffffffffffff0000); // both counts wrap
}

// A reader that writes nonsense cannot make the writer overwrite what is not free.
void hostile_release_words_are_refused() {
    HeapRing memory(16, 4096);
    const Layout layout = golden_layout();
    WriterCore core(memory.ring(), golden_config(), tick_clock, 0, 0);
    golden_step(core, layout, 0);
    golden_step(core, layout, 1);
    const uint64_t wrong[] = {5, uint64_t{1} << 63, ~uint64_t{0}, 1 /* names the CAPTURE */, 3};
    uint64_t refused = 0;
    for (const uint64_t word : wrong) {
        shared(memory.ring().consumer->release_seq).store(word);
        core.refresh();
        CHECK_EQUAL(core.release(), 0);
        CHECK_EQUAL(core.counters().refused_releases, ++refused);
    }
    shared(memory.ring().consumer->release_seq).store(4);
    core.refresh();
    CHECK_EQUAL(core.release(), 4);
    shared(memory.ring().consumer->release_seq).store(2); // decreases
    core.refresh();
    CHECK_EQUAL(core.release(), 4);
}

#if defined(__SANITIZE_ADDRESS__)
// The poison works: a copy of one byte too many ends the process that makes it.
void an_overrun_of_the_ring_is_seen() {
    HeapRing memory(16, 4096);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(std::freopen("/dev/null", "w", stderr) != nullptr);
        std::memset(memory.writable(4032, 64), 1, memory.ring().data_bytes() - 4032 + 1);
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
}
#endif

} // namespace

int main() {
    std::printf("ring_test\n");
    RUN(checksums_are_those_of_the_page);
    RUN(every_payload_equals_its_vector);
    RUN(the_golden_ring_is_written_byte_for_byte);
    RUN(the_golden_ring_is_read);
    RUN(a_flipped_bit_of_a_descriptor_is_found);
    RUN(random_steps_arrive_as_they_were_written);
    RUN(hostile_release_words_are_refused);
#if defined(__SANITIZE_ADDRESS__)
    RUN(an_overrun_of_the_ring_is_seen);
#endif
}
