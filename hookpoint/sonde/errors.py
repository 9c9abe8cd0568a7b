"""Errors of the package. Each message says what failed, on which value, and what to do next."""

from __future__ import annotations

from typing import NamedTuple


class SondeError(Exception):
    """Base of all errors that this package raises itself."""


class DamagedMessage(SondeError):
    """A message of the bus is not what schema/SCHEMA.md describes."""


class LakeError(SondeError):
    """A folder is no lake, or a file of the lake was damaged."""


class NotInLake(SondeError):
    """The lake knows nothing of what was asked for."""


class AmbiguousRequest(SondeError):
    """A request id stands for several sequences; choose one by epoch and number."""


class Missing(NamedTuple):
    """Positions [start, stop) of a tensor that have no row."""

    start: int
    stop: int
    reason: str


class IncompleteTensor(SondeError):
    """Positions of a tensor have no row. `missing` lists them with their reasons."""

    def __init__(self, what: str, missing: list[Missing]) -> None:
        """Name the tensor and what it lacks; the text lists at most 8 runs."""
        self.missing = missing
        runs = "; ".join(f"[{m.start}, {m.stop}): {m.reason}" for m in missing[:8])
        more = f"; and {len(missing) - 8} more gaps" if len(missing) > 8 else ""
        super().__init__(f"{what} is incomplete: positions {runs}{more}; pass allow_partial=True to read the rest")


class CaptureError(SondeError):
    """Capture from a model cannot do what was asked for."""


class LibraryMissing(CaptureError):
    """libsonde was not found or cannot be used."""


class UnknownHook(CaptureError):
    """A hook name fits nothing in the model; the text lists the nearest names."""


class AlreadyAttached(CaptureError):
    """The model, or one that contains it, has a capture already."""
