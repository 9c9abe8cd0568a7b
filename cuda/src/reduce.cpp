// Reductions at the source. They run on the model's threads, allocate nothing, and are exact where they can be.

#include <bit>
#include <cmath>
#include <cstring>

#include "fail.h"
#include "reduce.h"

namespace {

using sonde::can_cast;
using sonde::fail;
using sonde::is_float;

float float_of_bf16(uint16_t h) { return std::bit_cast<float>(uint32_t{h} << 16); }

// IEEE 754 half: 5 bits of exponent, 10 of fraction.
float float_of_f16(uint16_t h) {
    const uint32_t sign = uint32_t{h & 0x8000U} << 16, exponent = h >> 10 & 31U, fraction = h & 1023U;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000U | fraction << 13);
    if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
    const float tiny = static_cast<float>(fraction) * 0x1p-24F; // exact
    return sign != 0 ? -tiny : tiny;
}

// The OCP format without infinities: 4 bits of exponent, 3 of fraction, NaN only where all seven are set.
float float_of_f8e4m3(uint8_t b) {
    const uint32_t exponent = b >> 3 & 15U, fraction = b & 7U;
    float v = 0;
    if ((b & 0x7fU) == 0x7fU) {
        v = std::bit_cast<float>(0x7fc00000U);
    } else if (exponent == 0) {
        v = static_cast<float>(fraction) * 0x1p-9F;
    } else {
        v = std::bit_cast<float>((exponent + 120) << 23 | fraction << 20);
    }
    return std::copysign(v, (b & 0x80U) != 0 ? -1.0F : 1.0F);
}

uint16_t bf16_of_float(float v) {
    const auto u = std::bit_cast<uint32_t>(v);
    if ((u & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>(u >> 16 | 0x40U); // NaN stays NaN, quiet
    return static_cast<uint16_t>((u + 0x7fffU + (u >> 16 & 1U)) >> 16);                 // ties to even
}

uint16_t f16_of_float(float v) {
    const auto u = std::bit_cast<uint32_t>(v);
    const uint32_t sign = u >> 16 & 0x8000U, a = u & 0x7fffffffU;
    if (a > 0x7f800000U) return static_cast<uint16_t>(sign | 0x7e00U | (a >> 13 & 0x3ffU));
    if (a >= 0x477ff000U) return static_cast<uint16_t>(sign | 0x7c00U); // rounds to 65536: infinity
    if (a < 0x38800000U) {                                              // below the smallest normal half
        // Adding 0.5 to a value below 2^-14 rounds it, ties to even, at bit 2^-24, the step of a subnormal half.
        const auto rounded = std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0.5F);
        return static_cast<uint16_t>(sign | (rounded - 0x3f000000U));
    }
    return static_cast<uint16_t>(sign | (a - 0x38000000U + 0xfffU + (a >> 13 & 1U)) >> 13);
}

template <class T>
T element(const void *src, uint64_t i) {
    T v;
    std::memcpy(&v, static_cast<const uint8_t *>(src) + i * sizeof v, sizeof v);
    return v;
}

float float_at(const void *src, uint32_t dtype, uint64_t i) {
    switch (dtype) {
    case SONDE_F32: return element<float>(src, i);
    case SONDE_F16: return float_of_f16(element<uint16_t>(src, i));
    case SONDE_BF16: return float_of_bf16(element<uint16_t>(src, i));
    case SONDE_F8E4M3: return float_of_f8e4m3(element<uint8_t>(src, i));
    default: return float_of_f16(static_cast<uint16_t>(element<uint8_t>(src, i) << 8)); // e5m2: upper half of an f16
    }
}

// Every type but i64 beyond 2^53 is exact in double.
double double_at(const void *src, uint32_t dtype, uint64_t i) {
    switch (dtype) {
    case SONDE_I32: return element<int32_t>(src, i);
    case SONDE_U8: return element<uint8_t>(src, i);
    case SONDE_I64: return static_cast<double>(element<int64_t>(src, i));
    case SONDE_U16: return element<uint16_t>(src, i);
    case SONDE_I8: return element<int8_t>(src, i);
    default: return float_at(src, dtype, i);
    }
}

// Converts count elements of a type that the compiler knows, so that the loops hold no switch.
template <uint32_t from>
void cast_from(void *dst, uint32_t dst_dtype, const void *src, uint64_t count) {
    const auto each = [&](auto convert) {
        auto *out = static_cast<uint8_t *>(dst);
        for (uint64_t i = 0; i < count; i++) {
            const auto v = convert(float_at(src, from, i));
            std::memcpy(out + i * sizeof v, &v, sizeof v);
        }
    };
    switch (dst_dtype) {
    case SONDE_F32: each([](float v) { return v; }); break;
    case SONDE_F16: each(f16_of_float); break;
    default: each(bf16_of_float); break;
    }
}

bool finite(double v) { return v - v == 0; }

void row_stats(sonde_row_stats *out, const void *src, uint32_t dtype, uint64_t first, uint32_t width) {
    double sum = 0, squares = 0, most = 0, deviations = 0;
    *out = sonde_row_stats{};
    out->dim = width;
    out->arg_max = -1;
    for (uint32_t i = 0; i < width; i++) {
        const double v = double_at(src, dtype, first + i);
        if (!finite(v)) {
            out->non_finite++;
            continue;
        }
        out->zeros += v == 0;
        if (const double a = std::fabs(v); a > most || out->arg_max < 0) {
            most = a;
            out->arg_max = static_cast<int32_t>(i);
        }
        sum += v;
        squares += v * v;
    }
    const uint32_t n = width - out->non_finite;
    const double mean = n > 0 ? sum / n : 0;
    // The second pass keeps a large mean from costing the digits of the deviation.
    for (uint32_t i = 0; i < width; i++) {
        const double v = double_at(src, dtype, first + i);
        if (finite(v)) deviations += (v - mean) * (v - mean);
    }
    out->l2 = static_cast<float>(std::sqrt(squares));
    out->mean = static_cast<float>(mean);
    out->std = n > 0 ? static_cast<float>(std::sqrt(deviations / n)) : 0.0F;
    out->abs_max = static_cast<float>(most);
}

} // namespace

extern "C" {

sonde_status sonde_cast(void *dst, uint32_t dst_dtype, const void *src, uint32_t src_dtype, uint64_t count) {
    if (!can_cast(dst_dtype, src_dtype))
        return fail(SONDE_INVALID, "cast: from dtype %u to %u; cast floating types to f32, f16 or bf16", src_dtype,
                    dst_dtype);
    if ((dst == nullptr || src == nullptr) && count > 0) return fail(SONDE_INVALID, "cast: an argument is NULL");
    if (count == 0) return SONDE_OK;
    if (dst_dtype == src_dtype) {
        std::memcpy(dst, src, count * sonde_dtype_bytes(src_dtype));
        return SONDE_OK;
    }
    switch (src_dtype) {
    case SONDE_F32: cast_from<SONDE_F32>(dst, dst_dtype, src, count); break;
    case SONDE_F16: cast_from<SONDE_F16>(dst, dst_dtype, src, count); break;
    case SONDE_BF16: cast_from<SONDE_BF16>(dst, dst_dtype, src, count); break;
    case SONDE_F8E4M3: cast_from<SONDE_F8E4M3>(dst, dst_dtype, src, count); break;
    default: cast_from<SONDE_F8E5M2>(dst, dst_dtype, src, count); break;
    }
    return SONDE_OK;
}

sonde_status sonde_stats_rows(sonde_row_stats *out, const void *src, uint32_t dtype, uint32_t rows, uint32_t width) {
    if (sonde_dtype_bytes(dtype) == 0 || ((out == nullptr || src == nullptr) && rows > 0))
        return fail(SONDE_INVALID, "stats: dtype %u does not exist, or an argument is NULL", dtype);
    for (uint32_t r = 0; r < rows; r++) row_stats(&out[r], src, dtype, uint64_t{r} * width, width);
    return SONDE_OK;
}

sonde_status sonde_project_rows(float *out, const void *src, uint32_t dtype, uint32_t rows, uint32_t width,
                                const float *matrix, uint32_t k) {
    if (!is_float(dtype) || ((out == nullptr || src == nullptr || matrix == nullptr) && rows > 0 && k > 0))
        return fail(SONDE_INVALID, "project: dtype %u is not a floating type, or an argument is NULL", dtype);
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t j = 0; j < k; j++) {
            double sum = 0;
            for (uint32_t i = 0; i < width; i++)
                sum += double{float_at(src, dtype, uint64_t{r} * width + i)} * double{matrix[uint64_t{j} * width + i]};
            out[uint64_t{r} * k + j] = static_cast<float>(sum);
        }
    }
    return SONDE_OK;
}

sonde_status sonde_copy_rows(void *dst, const void *src, uint64_t row_bytes, const uint32_t *rows, uint32_t row_count) {
    if ((dst == nullptr || src == nullptr || rows == nullptr) && row_count > 0)
        return fail(SONDE_INVALID, "copy rows: an argument is NULL");
    auto *to = static_cast<uint8_t *>(dst);
    const auto *from = static_cast<const uint8_t *>(src);
    for (uint32_t i = 0; i < row_count; i++) std::memcpy(to + i * row_bytes, from + rows[i] * row_bytes, row_bytes);
    return SONDE_OK;
}

} // extern "C"
