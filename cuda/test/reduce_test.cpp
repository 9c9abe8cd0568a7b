// The reductions against plain references: every half and bf16 there is, rounding at the middle, and thinning against
// the definition, token by token.

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "../sonde.h"
#include "check.h"

namespace {

float cast_to_float(uint32_t dtype, uint32_t bits) {
    float out = -1;
    CHECK_EQUAL(sonde_cast(&out, SONDE_F32, &bits, dtype, 1), SONDE_OK);
    return out;
}

uint16_t cast_to_half(uint32_t dtype, float v) {
    uint16_t out = 0;
    CHECK_EQUAL(sonde_cast(&out, dtype, &v, SONDE_F32, 1), SONDE_OK);
    return out;
}

// Value of a binary float by its definition.
double defined_value(uint32_t bits, int exponent_bits, int fraction_bits) {
    const uint32_t fraction = bits & ((1U << fraction_bits) - 1);
    const int exponent = static_cast<int>(bits >> fraction_bits & ((1U << exponent_bits) - 1));
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const double sign = (bits >> (exponent_bits + fraction_bits) & 1U) != 0 ? -1 : 1;
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
    return sign * std::ldexp((1U << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

void every_narrow_value_widens_exactly_and_comes_back() {
    for (uint32_t h = 0; h < 1U << 16; h++) {
        const bool f16_special = (h >> 10 & 31U) == 31, bf16_special = (h >> 7 & 255U) == 255;
        const float half = cast_to_float(SONDE_F16, h), brain = cast_to_float(SONDE_BF16, h);
        if (!f16_special) CHECK(static_cast<double>(half) == defined_value(h, 5, 10));
        if (!bf16_special) CHECK(static_cast<double>(brain) == defined_value(h, 8, 7));
        if (!std::isnan(half)) CHECK_EQUAL(cast_to_half(SONDE_F16, half), h);
        if (!std::isnan(brain)) CHECK_EQUAL(cast_to_half(SONDE_BF16, brain), h);
        if (f16_special) CHECK(std::isnan(half) == ((h & 1023U) != 0));
    }
    for (uint32_t b = 0; b < 256; b++) {
        const float e4m3 = cast_to_float(SONDE_F8E4M3, b), e5m2 = cast_to_float(SONDE_F8E5M2, b);
        CHECK(std::isnan(e4m3) == ((b & 127U) == 127));
        if (!std::isnan(e4m3)) CHECK(static_cast<double>(e4m3) == defined_value(b, 4, 3));
        if ((b >> 2 & 31U) != 31) CHECK(static_cast<double>(e5m2) == defined_value(b, 5, 2));
    }
}

// Between two neighbours: below the middle down, above it up, at it to the even one.
void check_rounding(uint32_t dtype, uint32_t h) {
    const double low = cast_to_float(dtype, h), high = cast_to_float(dtype, h + 1);
    const auto middle = static_cast<float>((low + high) / 2);
    CHECK_EQUAL(cast_to_half(dtype, middle), h % 2 == 0 ? h : h + 1);
    CHECK_EQUAL(cast_to_half(dtype, std::nextafterf(middle, -INFINITY)), low < high ? h : h + 1);
    CHECK_EQUAL(cast_to_half(dtype, std::nextafterf(middle, INFINITY)), low < high ? h + 1 : h);
}

void casts_round_to_nearest_ties_to_even() {
    for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
        for (uint32_t h = 0; h < 0x7bff; h++) check_rounding(SONDE_F16, sign | h);
        for (uint32_t h = 1; h < 0x7f7f; h++) check_rounding(SONDE_BF16, sign | h);
    }
    CHECK_EQUAL(cast_to_half(SONDE_F16, 65519.996F), 0x7bff);
    CHECK_EQUAL(cast_to_half(SONDE_F16, 65520.0F), 0x7c00);
    CHECK_EQUAL(cast_to_half(SONDE_BF16, std::numeric_limits<float>::max()), 0x7f80);
    CHECK_EQUAL(cast_to_half(SONDE_F16, -0.0F), 0x8000);
    for (const uint32_t nan : {0x7f800001U, 0x7fc00000U, 0xff800001U}) {
        CHECK(std::isnan(cast_to_float(SONDE_F16, cast_to_half(SONDE_F16, std::bit_cast<float>(nan)))));
        CHECK(std::isnan(cast_to_float(SONDE_BF16, cast_to_half(SONDE_BF16, std::bit_cast<float>(nan)))));
    }
    float f = 1;
    CHECK_EQUAL(sonde_cast(&f, SONDE_U8, &f, SONDE_F32, 1), SONDE_INVALID);
    CHECK_EQUAL(sonde_cast(&f, SONDE_F32, &f, SONDE_I32, 1), SONDE_INVALID);
    CHECK_EQUAL(sonde_cast(&f, SONDE_F32, &f, 77, 1), SONDE_INVALID);
}

void stats_leave_out_what_is_not_finite() {
    const float row[] = {3, -4, 0, NAN, INFINITY, 0};
    sonde_row_stats s{};
    CHECK_EQUAL(sonde_stats_rows(&s, row, SONDE_F32, 1, 6), SONDE_OK);
    CHECK(s.l2 == 5 && s.mean == -0.25F && s.abs_max == 4 && s.arg_max == 1 && s.zeros == 2 && s.non_finite == 2);
    CHECK(std::fabs(s.std - std::sqrt((3.25 * 3.25 + 3.75 * 3.75 + 2 * 0.25 * 0.25) / 4)) < 1e-6);
    const float none[] = {NAN, NAN};
    CHECK_EQUAL(sonde_stats_rows(&s, none, SONDE_F32, 1, 2), SONDE_OK);
    CHECK(s.arg_max == -1 && s.mean == 0 && s.std == 0 && s.non_finite == 2 && s.dim == 2);
    const float large[] = {1e8F + 8, 1e8F + 16, 1e8F + 24}; // a large mean costs no digits of the deviation
    CHECK_EQUAL(sonde_stats_rows(&s, large, SONDE_F32, 1, 3), SONDE_OK);
    CHECK(std::fabs(s.std - 8 * std::sqrt(2.0 / 3)) < 1e-5);
    const int8_t bytes[] = {-128, 127};
    CHECK_EQUAL(sonde_stats_rows(&s, bytes, SONDE_I8, 1, 2), SONDE_OK);
    CHECK(s.mean == -0.5F && s.abs_max == 128 && s.arg_max == 0);
}

void projection_is_a_dot_product_per_row() {
    const float rows[] = {1, 2, 3, 4, 5, 6}, matrix[] = {1, 0, -1, 0.5, 0.5, 0.5};
    float out[4] = {};
    CHECK_EQUAL(sonde_project_rows(out, rows, SONDE_F32, 2, 3, matrix, 2), SONDE_OK);
    CHECK(out[0] == -2 && out[1] == 3 && out[2] == -2 && out[3] == 7.5F);
    CHECK_EQUAL(sonde_project_rows(out, rows, SONDE_I32, 2, 3, matrix, 2), SONDE_INVALID);
}

// Whether a token at this place carries the bits afterwards, by the definition.
bool kept(const sonde_range &r, uint32_t i, sonde_thinning t) {
    const bool in_window = t.last_k == 0 || i + t.last_k >= r.count;
    return in_window && (r.position + i) % (t.stride == 0 ? 1 : t.stride) == 0;
}

void thinning_keeps_every_token_named() {
    std::mt19937_64 random = seeded_random();
    for (int run = 0; run < 2000; run++) {
        std::vector<sonde_range> in(1 + random() % 5), out(4096);
        for (sonde_range &r : in)
            r = {random() % 9,
                 static_cast<uint32_t>(random() % 50),
                 static_cast<uint32_t>(1 + random() % 40),
                 1,
                 SONDE_PREFILL,
                 static_cast<uint8_t>(random() % 2),
                 0,
                 random() % 8};
        const sonde_thinning t{static_cast<uint32_t>(random() % 5), static_cast<uint32_t>(random() % 20)};
        const uint64_t mask = 1 + random() % 7;
        std::vector<uint32_t> rows(4096), want;
        uint32_t pieces = 0, row_count = 0, at = 0, inside = 0, all_rows = 0;
        CHECK_EQUAL(sonde_thin_ranges(in.data(), static_cast<uint32_t>(in.size()), &t, mask, out.data(), 4096, &pieces,
                                      rows.data(), 4096, &row_count),
                    SONDE_OK);
        for (const sonde_range &r : in) {
            for (uint32_t i = 0; i < r.count; i++) {
                const sonde_range &p = out[at];
                const bool has = (r.layout_mask & mask) != 0, keep = has && kept(r, i, t);
                CHECK_EQUAL(p.number, r.number);
                CHECK_EQUAL(p.position + inside, r.position + i);
                CHECK_EQUAL(p.layout_mask, keep ? r.layout_mask : r.layout_mask & ~mask);
                if (keep) want.push_back(all_rows + i);
                if (++inside < p.count) continue;
                CHECK_EQUAL(p.sampled, i + 1 == r.count ? r.sampled : 0);
                inside = 0;
                at++;
            }
            if ((r.layout_mask & mask) != 0) all_rows += r.count;
        }
        CHECK_EQUAL(at, pieces);
        rows.resize(row_count);
        CHECK(rows == want);
        CHECK_EQUAL(sonde_thin_ranges(in.data(), static_cast<uint32_t>(in.size()), &t, mask, out.data(), pieces - 1,
                                      &pieces, rows.data(), 4096, &row_count),
                    SONDE_FULL);
    }
}

void chosen_rows_are_copied_in_order() {
    const uint16_t src[] = {10, 11, 20, 21, 30, 31};
    const uint32_t rows[] = {0, 2};
    uint16_t out[4] = {};
    CHECK_EQUAL(sonde_copy_rows(out, src, 4, rows, 2), SONDE_OK);
    CHECK(out[0] == 10 && out[1] == 11 && out[2] == 30 && out[3] == 31);
}

} // namespace

int main() {
    std::printf("reduce_test\n");
    RUN(every_narrow_value_widens_exactly_and_comes_back);
    RUN(casts_round_to_nearest_ties_to_even);
    RUN(stats_leave_out_what_is_not_finite);
    RUN(projection_is_a_dot_product_per_row);
    RUN(thinning_keeps_every_token_named);
    RUN(chosen_rows_are_copied_in_order);
}
