"""The C library behind HookPoints, through ctypes: structures, functions and errors of cuda/sonde.h.

The library is looked for at `$SONDE_LIBRARY`, inside the package, and at build/cuda/libsonde.so of a source tree.
Calls let go of the interpreter's lock, so that callbacks of the library can take it.
"""

from __future__ import annotations

import ctypes as c
import os
from functools import cache
from pathlib import Path

from sonde.errors import CaptureError, LibraryMissing

CLOSED, FULL, TIMEOUT, CUDA, UNSUPPORTED, FORKED = -2, -3, -5, -6, -7, -8

#: Codes of element types, by the names that readers use.
DTYPES = {"f32": 1, "f16": 2, "bf16": 3, "f8e4m3": 4, "f8e5m2": 5, "i32": 6, "u8": 7, "i64": 8, "u16": 9, "i8": 10}

#: Why rows were dropped; index into `Stats.dropped_rows`.
REASONS = ("captured", "no_slot", "no_space", "oversize", "control_full", "budget", "spool_full", "disabled")

ABORT_UNKNOWN, ABORT_STOPPED, ABORT_FINISHED = 0, 1, 2

MAX_TEXT, MAX_LABELS, MAX_DIMS, MAX_ENTRIES, MAX_STEP_LAYOUTS, MAX_STEP_RANGES = 4096, 64, 8, 4096, 64, 4096


class AbortRequest(c.Structure):
    """Asks to stop a sequence."""

    _fields_ = [("number", c.c_uint64), ("sample", c.c_uint32), ("position", c.c_uint32), ("engine_id", c.c_char_p)]


ABORT_FN = c.CFUNCTYPE(c.c_uint8, c.c_void_p, c.POINTER(AbortRequest), c.POINTER(c.c_uint32))
LOG_FN = c.CFUNCTYPE(None, c.c_void_p, c.c_int32, c.c_char_p)


class WriterOptions(c.Structure):
    """sonde_writer_options."""

    _fields_ = [
        ("struct_bytes", c.c_uint32), ("mode", c.c_uint32), ("socket", c.c_char_p), ("engine_instance", c.c_char_p),
        ("rank", c.c_uint32), ("rank_count", c.c_uint32), ("desc_count", c.c_uint64), ("data_bytes", c.c_uint64),
        ("step_stall_budget_ns", c.c_uint64), ("copy_timeout_ns", c.c_uint64), ("stall_limit", c.c_uint32),
        ("reserved", c.c_uint32), ("on_abort", ABORT_FN), ("on_abort_user", c.c_void_p), ("on_log", LOG_FN),
        ("on_log_user", c.c_void_p),
    ]  # fmt: skip


class Stats(c.Structure):
    """sonde_stats."""

    _fields_ = [
        ("captured_rows", c.c_uint64), ("dropped_rows", c.c_uint64 * len(REASONS)), ("aborted_rows", c.c_uint64),
        ("steps", c.c_uint64), ("claim", c.c_uint64), ("release", c.c_uint64), ("stalls", c.c_uint64),
        ("stall_ns", c.c_uint64), ("exhausted_steps", c.c_uint64), ("refused_releases", c.c_uint64),
        ("pending_control", c.c_uint64), ("control_lost", c.c_uint64), ("unnamed_rows", c.c_uint64),
        ("stuck_copies", c.c_uint64), ("quarantined_bytes", c.c_uint64), ("detached", c.c_uint64),
        ("attaches", c.c_uint64), ("attached", c.c_uint32), ("reserved", c.c_uint32),
    ]  # fmt: skip


class Model(c.Structure):
    """sonde_model."""

    _fields_ = [
        *((name, c.c_char_p) for name in
          ("name", "revision", "weights_digest", "quantisation", "engine", "engine_version")),
        ("layers", c.c_uint32), ("d_model", c.c_uint32), ("vocab", c.c_uint32),
    ]  # fmt: skip


class LayoutEntry(c.Structure):
    """sonde_layout_entry."""

    _fields_ = [
        ("hook", c.c_char_p), ("layer", c.c_int32), ("dtype", c.c_uint8), ("select", c.c_uint8),
        ("ragged", c.c_uint8), ("dims", c.c_uint8), ("shape", c.c_uint32 * MAX_DIMS), ("shard", c.c_uint16),
        ("shard_count", c.c_uint16),
    ]  # fmt: skip


class Label(c.Structure):
    """sonde_label."""

    _fields_ = [("key", c.c_char_p), ("value", c.c_char_p)]


class Request(c.Structure):
    """sonde_request."""

    _fields_ = [
        ("number", c.c_uint64), ("external_id", c.c_char_p), ("engine_id", c.c_char_p), ("tenant", c.c_char_p),
        ("adapter", c.c_char_p), ("trace_parent", c.c_char_p), ("sample", c.c_uint32), ("prompt_tokens", c.c_uint32),
        ("max_tokens", c.c_uint32), ("opt_in", c.c_uint32), ("open_wall_ns", c.c_uint64),
        ("labels", c.POINTER(Label)), ("label_count", c.c_uint32), ("reserved", c.c_uint32),
    ]  # fmt: skip


class RequestEnd(c.Structure):
    """sonde_request_end."""

    _fields_ = [
        ("number", c.c_uint64), ("prompt_tokens", c.c_uint32), ("generated_tokens", c.c_uint32),
        ("cached_tokens", c.c_uint32), ("passes", c.c_uint32), ("finish", c.c_uint32), ("reserved", c.c_uint32),
        ("end_wall_ns", c.c_uint64),
    ]  # fmt: skip


class AmendRange(c.Structure):
    """sonde_amend_range."""

    _fields_ = [
        ("number", c.c_uint64), ("position", c.c_uint32), ("count", c.c_uint32), ("pass_", c.c_uint32),
        ("verdict", c.c_uint32),
    ]  # fmt: skip


class DeviceOptions(c.Structure):
    """sonde_device_options."""

    _fields_ = [
        ("struct_bytes", c.c_uint32), ("cuda_device", c.c_int32), ("ring_bytes", c.c_uint64), ("layout", c.c_uint32),
        ("reserved", c.c_uint32),
    ]  # fmt: skip


class DeviceStats(c.Structure):
    """sonde_device_stats."""

    _fields_ = [
        *((name, c.c_uint64) for name in ("armed", "lifted", "aborted", "unarmed", "full", "copies", "bytes",
                                          "device_bytes", "pinned_bytes")),
        ("cuda_error", c.c_int32), ("reserved", c.c_uint32),
    ]  # fmt: skip


_P, _U32, _U64 = c.c_void_p, c.c_uint32, c.c_uint64

# Functions that return a status, with their arguments.
_CALLS = {
    "sonde_writer_open": [c.POINTER(WriterOptions), c.POINTER(_P)],
    "sonde_writer_close": [_P, _U64],
    "sonde_writer_stats": [_P, c.POINTER(Stats)],
    "sonde_writer_wait_attached": [_P, _U64],
    "sonde_set_model": [_P, c.POINTER(Model)],
    "sonde_define_layout": [_P, c.POINTER(LayoutEntry), _U32, c.POINTER(_U32)],
    "sonde_open_request": [_P, c.POINTER(Request)],
    "sonde_end_request": [_P, c.POINTER(RequestEnd)],
    "sonde_amend": [_P, _U64, c.POINTER(AmendRange), _U32],
    "sonde_begin_step": [_P, c.c_char_p, _U32, c.c_char_p, _U32, _P, _U32, c.POINTER(_U64)],
    "sonde_step_copy": [_P, _P, _U32],
    "sonde_step_run": [_P, _P, _U32, c.c_char_p, _U32, _P, _U32, c.POINTER(_U64)],
    "sonde_step_abort": [_P, _U32],
    "sonde_commit_step": [_P],
    "sonde_device_open": [_P, c.POINTER(DeviceOptions), c.POINTER(_P)],
    "sonde_device_plan": [_P, _U32, _U32],
    "sonde_device_taps": [_P, _P, _U32],
    "sonde_device_gather": [_P, _P],
    "sonde_device_arm": [_P, _U32, _P],
    "sonde_device_get_stats": [_P, c.POINTER(DeviceStats)],
    "sonde_device_close": [_P, _U64],
}


class LibraryFailure(CaptureError):
    """A call of the library failed; `status` is its code."""

    def __init__(self, status: int, text: str) -> None:
        """Keep the code beside the library's sentence."""
        self.status = status
        super().__init__(text)


def places() -> list[Path]:
    """List where the library is looked for."""
    here = Path(__file__).resolve().parent
    out = [here / "native" / "libsonde.so", here.parents[1] / "build" / "cuda" / "libsonde.so"]
    named = os.environ.get("SONDE_LIBRARY")
    return [Path(named)] if named else out


@cache
def load() -> c.CDLL:
    """Load the library once. Raises LibraryMissing, which says how to get it."""
    found = next((p for p in places() if p.exists()), None)
    if found is None:
        raise LibraryMissing(
            f"load libsonde: it is not at {' nor at '.join(map(str, places()))}; install g++ and run `pip install "
            "./hookpoint` again from the source tree, or set SONDE_LIBRARY to a libsonde.so"
        )
    try:
        library = c.CDLL(str(found))
        for name, arguments in _CALLS.items():
            getattr(library, name).argtypes = arguments
            getattr(library, name).restype = c.c_int32
    except (OSError, AttributeError) as e:
        raise LibraryMissing(f"load libsonde from {found}: {e}; build it again with `make libsonde`") from None
    library.sonde_last_error.restype = c.c_char_p
    library.sonde_version.restype = c.c_char_p
    library.sonde_has_cuda.restype = c.c_int32
    library.sonde_writer_free.argtypes, library.sonde_writer_free.restype = [_P], None
    library.sonde_writer_epoch.argtypes, library.sonde_writer_epoch.restype = [_P], _U64
    library.sonde_step_outcome.argtypes, library.sonde_step_outcome.restype = [_P, _U32], _U32
    return library


def check(status: int) -> None:
    """Raise LibraryFailure with the library's own sentence for a status other than 0."""
    if status != 0:
        raise LibraryFailure(status, load().sonde_last_error().decode("utf-8", "replace"))
