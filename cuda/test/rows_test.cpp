// Copies of rows into a step, against a plain reference: what stands in a span must be the rows that were meant, and
// no byte outside of a source is read. Sources lie at the very end of their memory, where AddressSanitizer watches.

#include <cmath>
#include <cstring>
#include <functional>

#include "writer_fixture.h"

using namespace sonde;

namespace {

constexpr uint32_t width = 5;

sonde_layout_entry entry_of(const char *hook, uint8_t dtype, uint8_t select, uint8_t ragged) {
    sonde_layout_entry e{};
    e.hook = hook;
    e.dtype = dtype;
    e.select = select;
    e.ragged = ragged;
    e.dims = 1;
    e.shape[0] = width;
    return e;
}

// A writer without an agent, whose one layout has an entry of each kind.
struct Engine {
    Engine() : writer(open_writer(options_for(""))) {
        const sonde_layout_entry entries[] = {entry_of("a", SONDE_F32, SONDE_SELECT_ALL, 0),
                                              entry_of("b", SONDE_BF16, SONDE_SELECT_ALL, 0),
                                              entry_of("c", SONDE_I32, SONDE_SELECT_SAMPLED, 0)};
        CHECK_EQUAL(sonde_define_layout(w(), entries, 3, &layout), SONDE_OK);
        const sonde_layout_entry loose = entry_of("d", SONDE_F32, SONDE_SELECT_ALL, 1);
        CHECK_EQUAL(sonde_define_layout(w(), &loose, 1, &ragged), SONDE_OK);
        open_request(w(), 1);
    }
    sonde_writer *w() const { return writer.get(); }
    void begin(const std::vector<sonde_range> &ranges) const {
        const uint32_t layouts[] = {layout, ragged};
        CHECK_EQUAL(
            sonde_begin_step(w(), ranges.data(), static_cast<uint32_t>(ranges.size()), layouts, 2, nullptr, 0, nullptr),
            SONDE_OK);
    }
    template <class T>
    std::vector<T> span(uint32_t entry) const {
        uint64_t bytes = 0;
        const void *at = sonde_step_span(w(), 0, entry, &bytes);
        std::vector<T> out(bytes / sizeof(T));
        if (bytes > 0) std::memcpy(out.data(), at, bytes);
        return out;
    }

    WriterPointer writer;
    uint32_t layout = 0, ragged = 0;
};

// A tensor of f32 whose row r holds r, r + 1/8 …: exact in bf16 below 32. Its last element is the last of its memory.
struct Tensor {
    Tensor(uint32_t rows, uint32_t elements_between) : stride(4 * (width + elements_between)) {
        values.resize(rows == 0 ? 0 : (rows - 1) * (width + elements_between) + width, NAN);
        values.shrink_to_fit();
        for (uint32_t r = 0; r < rows; r++)
            for (uint32_t i = 0; i < width; i++) values[r * (width + elements_between) + i] = value(r, i);
    }
    static float value(uint32_t row, uint32_t i) { return static_cast<float>(row) + static_cast<float>(i) / 8; }
    sonde_copy copy(uint32_t entry, const std::vector<sonde_run> &runs) const {
        return {
            values.data(), values.size() * 4, stride, runs.data(), nullptr, static_cast<uint32_t>(runs.size()), 0, 0,
            entry,         SONDE_F32,         0};
    }

    uint64_t stride;
    std::vector<float> values;
};

float bf16_value(uint16_t h) {
    float v = 0;
    CHECK_EQUAL(sonde_cast(&v, SONDE_F32, &h, SONDE_BF16, 1), SONDE_OK);
    return v;
}

void runs_are_copied_in_order_with_gaps_and_casts() {
    std::mt19937_64 random = seeded_random();
    for (int run = 0; run < 300; run++) {
        const Engine engine;
        const auto total = static_cast<uint32_t>(1 + random() % 30);
        const Tensor tensor(total, static_cast<uint32_t>(random() % 3));
        std::vector<sonde_range> ranges;
        std::vector<sonde_run> runs;
        std::vector<uint32_t> want;
        for (uint32_t n = 1 + static_cast<uint32_t>(random() % 4); n > 0; n--) {
            const auto first = static_cast<uint32_t>(random() % total);
            const auto count = static_cast<uint32_t>(1 + random() % (total - first));
            ranges.push_back({1, 100 * n, count, 0, SONDE_DECODE, 0, 0, 1});
            runs.push_back({first, count});
            for (uint32_t i = 0; i < count; i++) want.push_back(first + i);
        }
        engine.begin(ranges);
        const sonde_copy copies[] = {tensor.copy(0, runs), tensor.copy(1, runs)};
        CHECK_EQUAL(sonde_step_copy(engine.w(), copies, 2), SONDE_OK);
        const std::vector<float> plain = engine.span<float>(0);
        const std::vector<uint16_t> narrow = engine.span<uint16_t>(1);
        CHECK_EQUAL(plain.size(), want.size() * width);
        CHECK_EQUAL(narrow.size(), want.size() * width);
        for (uint32_t i = 0; i < plain.size(); i++) {
            CHECK(plain[i] == Tensor::value(want[i / width], i % width));
            CHECK(bf16_value(narrow[i]) == plain[i]);
        }
    }
}

// Thinned ranges name fewer rows than the tensor has: the chosen ones must be those of the kept positions.
void thinned_ranges_take_the_rows_of_their_positions() {
    std::mt19937_64 random = seeded_random();
    for (int run = 0; run < 300; run++) {
        const Engine engine;
        std::vector<sonde_range> ranges, thin(256);
        std::vector<sonde_run> runs;
        uint32_t total = 0;
        for (uint32_t n = 1 + static_cast<uint32_t>(random() % 4); n > 0; n--) {
            total += static_cast<uint32_t>(random() % 3); // rows of others
            const sonde_range r{1,
                                static_cast<uint32_t>(random() % 50),
                                static_cast<uint32_t>(1 + random() % 9),
                                0,
                                SONDE_PREFILL,
                                0,
                                0,
                                1};
            ranges.push_back(r);
            runs.push_back({total, r.count});
            total += r.count;
        }
        const sonde_thinning t{static_cast<uint32_t>(random() % 4), static_cast<uint32_t>(random() % 5)};
        std::vector<uint32_t> kept(256), want;
        uint32_t pieces = 0, kept_count = 0;
        CHECK_EQUAL(sonde_thin_ranges(ranges.data(), static_cast<uint32_t>(ranges.size()), &t, 1, thin.data(), 256,
                                      &pieces, kept.data(), 256, &kept_count),
                    SONDE_OK);
        for (size_t i = 0; i < ranges.size(); i++)
            for (uint32_t k = 0; k < ranges[i].count; k++)
                if ((t.last_k == 0 || k + t.last_k >= ranges[i].count) &&
                    (ranges[i].position + k) % std::max(1U, t.stride) == 0)
                    want.push_back(runs[i].first_row + k);
        thin.resize(pieces);
        kept.resize(std::max(1U, kept_count)); // never NULL, which would mean all
        kept.shrink_to_fit();
        engine.begin(thin);
        const Tensor tensor(total, 1);
        sonde_copy copy = tensor.copy(0, runs);
        copy.rows = kept.data();
        copy.row_count = kept_count;
        CHECK_EQUAL(sonde_step_copy(engine.w(), &copy, 1), SONDE_OK);
        const std::vector<float> got = engine.span<float>(0);
        CHECK_EQUAL(got.size(), want.size() * width);
        for (uint32_t i = 0; i < got.size(); i++) CHECK(got[i] == Tensor::value(want[i / width], i % width));
    }
}

void sampled_rows_and_a_row_for_all_are_copied() {
    const Engine engine;
    engine.begin({{1, 0, 3, 0, SONDE_PREFILL, 1, 0, 1}, {1, 9, 2, 0, SONDE_DECODE, 1, 0, 1}});
    const std::vector<int32_t> logits = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    const sonde_run sampled[] = {{1, 1}, {0, 1}}, all[] = {{0, 5}};
    const float bias[width] = {1, 2, 3, 4, 5};
    const sonde_copy copies[] = {
        {logits.data(), 40, 20, sampled, nullptr, 2, 0, 0, 2, SONDE_I32, 0},
        {bias, sizeof bias, 0, all, nullptr, 1, 0, 0, 0, SONDE_F32, 0}}; // a stride of 0: an expanded tensor
    CHECK_EQUAL(sonde_step_copy(engine.w(), copies, 2), SONDE_OK);
    CHECK((engine.span<int32_t>(2) == std::vector<int32_t>{6, 7, 8, 9, 10, 1, 2, 3, 4, 5}));
    for (uint32_t i = 0; i < 25; i++) CHECK(engine.span<float>(0)[i] == bias[i % width]);
}

void dropped_layouts_are_passed_over() {
    const Engine engine;
    const Tensor tensor(2, 0);
    const std::vector<sonde_run> runs = {{0, 2}};
    uint32_t dropped = 0;
    for (uint32_t i = 0; i < 100; i++) { // nobody reads: the ring fills
        engine.begin({{1, 2 * i, 2, 0, SONDE_DECODE, 0, 0, 1}});
        dropped += sonde_step_outcome(engine.w(), 0) != SONDE_CAPTURED;
        const sonde_copy copies[] = {tensor.copy(0, runs), tensor.copy(1, runs)};
        CHECK_EQUAL(sonde_step_copy(engine.w(), copies, 2), SONDE_OK);
        CHECK_EQUAL(sonde_commit_step(engine.w()), SONDE_OK);
    }
    CHECK(dropped > 0);
}

void a_wrong_copy_is_refused_and_nothing_is_written() {
    const Engine engine;
    const std::vector<sonde_run> runs = {{0, 3}};
    const Tensor tensor(3, 0);
    CHECK_EQUAL(sonde_step_copy(engine.w(), nullptr, 0), SONDE_STATE);
    engine.begin({{1, 0, 3, 0, SONDE_PREFILL, 1, 0, 3}});
    const sonde_run far_run{0xffffffffU, 0xffffffffU}, long_run{0, 0xffffffffU}, none{7, 0}, two[] = {{1, 1}, {2, 1}};
    const uint32_t twice[] = {0, 1, 1}, falling[] = {2, 1, 0}, beyond[] = {0, 1, 3};
    const std::function<void(sonde_copy &)> wrongs[] = {
        [](sonde_copy &c) { c.src_bytes--; },
        [](sonde_copy &c) { c.src_bytes = 0; },
        [](sonde_copy &c) { c.row_stride++; },
        [](sonde_copy &c) { c.row_stride = UINT64_MAX; },
        [](sonde_copy &c) { c.row_stride = UINT64_MAX / 2 + 1; }, // times two is 0
        [](sonde_copy &c) { c.src = nullptr; },
        [](sonde_copy &c) { c.runs = nullptr; },
        [&](sonde_copy &c) { c.runs = &far_run; },
        [&](sonde_copy &c) { c.runs = &long_run; },
        [&](sonde_copy &c) { c.runs = &long_run, c.row_stride = 0; },
        [&](sonde_copy &c) { c.runs = &none; },
        [&](sonde_copy &c) { c.runs = two, c.run_count = 2; },
        [](sonde_copy &c) { c.run_count = 0; },
        [](sonde_copy &c) { c.row_count = 3; },
        [&](sonde_copy &c) { c.rows = twice, c.row_count = 3; },
        [&](sonde_copy &c) { c.rows = falling, c.row_count = 3; },
        [&](sonde_copy &c) { c.rows = beyond, c.row_count = 3; },
        [&](sonde_copy &c) { c.rows = twice, c.row_count = 2; },
        [](sonde_copy &c) { c.entry = 3; },
        [](sonde_copy &c) { c.entry = 2; }, // f32 is not cast to i32
        [](sonde_copy &c) { c.layout_index = 2; },
        [](sonde_copy &c) { c.layout_index = 1, c.entry = 0; }, // ragged
        [](sonde_copy &c) { c.src_dtype = SONDE_U8; },
        [](sonde_copy &c) { c.src_dtype = 0; },
        [](sonde_copy &c) { c.src_dtype = 99; },
    };
    std::memset(sonde_step_span(engine.w(), 0, 0, nullptr), 0, 60);
    int n = 0;
    for (const auto &wrong : wrongs) {
        sonde_copy copies[] = {tensor.copy(0, runs), tensor.copy(0, runs)}; // the first one is right
        wrong(copies[1]);
        const sonde_status s = sonde_step_copy(engine.w(), copies, 2);
        if (s != SONDE_INVALID || std::strncmp(sonde_last_error(), "copy rows: ", 11) != 0)
            std::fprintf(stderr, "wrong copy %d: status %d, \"%s\"\n", n, s, sonde_last_error());
        CHECK_EQUAL(s, SONDE_INVALID);
        for (const float v : engine.span<float>(0)) CHECK(v == 0);
        n++;
    }
    CHECK_EQUAL(sonde_step_copy(engine.w(), nullptr, 1), SONDE_INVALID);
    CHECK_EQUAL(sonde_step_copy(nullptr, nullptr, 0), SONDE_INVALID);
    const sonde_copy right = tensor.copy(0, runs);
    CHECK_EQUAL(sonde_step_copy(engine.w(), &right, 1), SONDE_OK);
    CHECK(engine.span<float>(0)[14] == Tensor::value(2, 4));
}

// A refused copy must not leave the step open, nor publish what an older record left in its spans.
void a_step_in_one_call_ends_also_when_a_copy_is_refused() {
    const Engine engine;
    const Tensor tensor(6, 1);
    const std::vector<sonde_run> runs = {{4, 2}, {1, 1}};
    const sonde_range ranges[] = {{1, 0, 2, 0, SONDE_DECODE, 0, 0, 1}, {2, 7, 1, 0, SONDE_DECODE, 1, 0, 1}};
    const sonde_copy copies[] = {tensor.copy(0, runs), tensor.copy(1, runs)};
    const uint32_t layouts[] = {0};
    uint64_t step = 99;
    CHECK_EQUAL(sonde_step_run(engine.w(), ranges, 2, layouts, 1, copies, 2, &step), SONDE_OK);
    CHECK_EQUAL(step, 0);
    engine.begin({ranges[0], ranges[1]});
    CHECK_EQUAL(sonde_step_run(engine.w(), ranges, 2, layouts, 1, copies, 2, &step), SONDE_STATE);
    CHECK_EQUAL(sonde_step_copy(engine.w(), copies, 2), SONDE_OK);
    CHECK_EQUAL(sonde_commit_step(engine.w()), SONDE_OK);
    const sonde_stats before = stats_of(engine.w());
    CHECK_EQUAL(before.steps, 2);
    CHECK_EQUAL(before.aborted_rows, 0);
    sonde_copy wrong[] = {tensor.copy(0, runs), tensor.copy(1, runs)};
    wrong[1].src_bytes = 1;
    CHECK_EQUAL(sonde_step_run(engine.w(), ranges, 2, layouts, 1, wrong, 2, &step), SONDE_INVALID);
    CHECK(std::strncmp(sonde_last_error(), "copy rows: ", 11) == 0);
    CHECK_EQUAL(step, 2);
    CHECK(stats_of(engine.w()).aborted_rows > 0);
    CHECK_EQUAL(sonde_commit_step(engine.w()), SONDE_STATE);
    CHECK_EQUAL(sonde_step_run(engine.w(), ranges, 0, layouts, 1, copies, 2, &step), SONDE_INVALID);
    CHECK_EQUAL(sonde_step_run(engine.w(), nullptr, 1, layouts, 1, copies, 2, &step), SONDE_INVALID);
    CHECK_EQUAL(sonde_step_run(engine.w(), ranges, 2, layouts, 1, nullptr, 2, &step), SONDE_INVALID);
    CHECK_EQUAL(sonde_step_run(engine.w(), ranges, 2, layouts, 1, copies, 2, nullptr), SONDE_OK);
    CHECK_EQUAL(stats_of(engine.w()).steps, 4);
}

} // namespace

int main() {
    std::printf("rows_test\n");
    RUN(runs_are_copied_in_order_with_gaps_and_casts);
    RUN(thinned_ranges_take_the_rows_of_their_positions);
    RUN(sampled_rows_and_a_row_for_all_are_copied);
    RUN(dropped_layouts_are_passed_over);
    RUN(a_wrong_copy_is_refused_and_nothing_is_written);
    RUN(a_step_in_one_call_ends_also_when_a_copy_is_refused);
}
