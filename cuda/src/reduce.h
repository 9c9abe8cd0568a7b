// What the reductions know of types.
#pragma once

#include <cstdint>

#include "../sonde.h"

namespace sonde {

inline bool is_float(uint32_t dtype) { return dtype >= SONDE_F32 && dtype <= SONDE_F8E5M2; }

// Says whether sonde_cast takes this pair.
inline bool can_cast(uint32_t dst_dtype, uint32_t src_dtype) {
    if (dst_dtype == src_dtype) return sonde_dtype_bytes(src_dtype) > 0;
    return is_float(src_dtype) && dst_dtype >= SONDE_F32 && dst_dtype <= SONDE_BF16;
}

} // namespace sonde
