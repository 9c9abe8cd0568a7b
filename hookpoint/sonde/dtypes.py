"""Element types of captured rows, and their exact widening to float32.

Floats are widened by moving bits, never by arithmetic, which would make a signalling NaN quiet: each element has a
float32 of its own, the same that the lake stores.
"""

from __future__ import annotations

from functools import cache

import numpy as np

#: Bytes of one element.
SIZES = {"f32": 4, "f16": 2, "bf16": 2, "f8e4m3": 1, "f8e5m2": 1, "i32": 4, "u8": 1, "i64": 8, "u16": 2, "i8": 1}

_INTEGERS = {"u8": "<u1", "i8": "<i1", "u16": "<u2"}
_WHOLE = {"i32": "<i4", "i64": "<i8"}


def widen(dtype: str, raw: np.ndarray) -> np.ndarray:
    """Make numbers of the bytes of elements.

    raw: uint8, any length that is a multiple of the element. Returns one dimension: float32 for f32, f16, bf16, f8e4m3,
    f8e5m2, u8, i8 and u16; int32 or int64 for i32 and i64, which float32 cannot hold. The result may share memory with
    raw. Raises KeyError for an unknown dtype.
    """
    raw = np.ascontiguousarray(raw)
    if dtype == "f32":
        return raw.view("<f4")
    if dtype == "bf16":
        return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "f16":
        return _half_table()[raw.view("<u2")].view(np.float32)
    if dtype == "f8e5m2":  # a half without its low byte
        return _half_table()[raw.astype(np.uint16) << np.uint16(8)].view(np.float32)
    if dtype == "f8e4m3":
        return _e4m3_table()[raw].view(np.float32)
    if dtype in _WHOLE:
        return raw.view(_WHOLE[dtype])
    return raw.view(_INTEGERS[dtype]).astype(np.float32)


@cache
def _half_table() -> np.ndarray:
    """uint32[65536]: the bits of the float32 of each half."""
    half = np.arange(1 << 16, dtype=np.uint32)
    sign, exponent, mantissa = (half >> 15) << 31, (half >> 10) & 31, half & 1023
    normal = ((exponent + (127 - 15)) << 23) | (mantissa << 13)
    special = np.uint32(0x7F800000) | (mantissa << 13)
    subnormal = (mantissa.astype(np.float32) * np.float32(2.0**-24)).view(np.uint32)
    return sign | np.where(exponent == 31, special, np.where(exponent == 0, subnormal, normal))


@cache
def _e4m3_table() -> np.ndarray:
    """uint32[256]: the bits of the float32 of each OCP float8 with bias 7, no infinity and one NaN for each sign."""
    byte = np.arange(256, dtype=np.uint32)
    sign, exponent, mantissa = (byte >> 7) << 31, (byte >> 3) & 15, byte & 7
    normal = ((exponent + (127 - 7)) << 23) | (mantissa << 20)
    subnormal = (mantissa.astype(np.float32) * np.float32(2.0**-9)).view(np.uint32)
    number = np.where(exponent == 0, subnormal, normal)
    return sign | np.where((exponent == 15) & (mantissa == 7), np.uint32(0x7FC00000), number)
