"""The words between who runs in a forward and what is captured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol


class Phase(IntEnum):
    """What a forward does with tokens."""

    PREFILL = 0
    DECODE = 1
    RECOMPUTE = 2


class Verdict(IntEnum):
    """What became of tokens that were computed."""

    ACCEPTED = 0
    REJECTED = 1
    PHANTOM = 2


class Finish(IntEnum):
    """Why a sequence ended."""

    STOP = 0
    LENGTH = 1
    ABORT = 2
    DISCONNECT = 3
    ERROR = 4
    DETECTOR = 5


@dataclass(frozen=True, slots=True)
class Range:
    """A run of consecutive tokens of one sequence that a forward computes."""

    number: int  #: of the sequence, from `Recorder.open_request`
    position: int  #: absolute, of its first token; 0 is the first prompt token, and padding has none
    count: int  #: of tokens, at least 1
    first_row: int  #: of its first token among the rows [batch, seq] of a tapped tensor, flattened row-major
    pass_: int = 0  #: 0 the first time that this position of this sequence is computed, one more for each repetition
    phase: Phase = Phase.DECODE
    sampled: bool = False  #: the last row of the range is sampled from


class Identity(Protocol):
    """Says whose tokens a forward computes."""

    def ranges(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[Range] | None:
        """Name the tokens of the forward that begins; None or nothing: nothing of it is captured.

        args and kwargs are the root module's. Raising `Unidentified` says why nothing can be named.
        """

    def finished(self, module: Any, output: Any) -> None:
        """Learn that the forward ended and its step was committed. Not called for a forward that raised."""


class Unidentified(Exception):  # noqa: N818 (it is an answer, not an error)
    """The rows of a forward cannot be named with certainty; the text says why."""
