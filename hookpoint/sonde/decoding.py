"""Steps of decoding: each computes one more token of the same rows, and that is all that changes between them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, overload

from sonde.identity import Track
from sonde.native import Functions, functions
from sonde.step import Phase, Range

_WORDS = 4  # of a sonde_range, of 8 bytes each: number; position | count; pass | phase | sampled; layout_mask
_SAMPLED_DECODE = (Phase.DECODE | 1 << 8) << 32


class Rows:
    """The rows that a loop of decoding goes on with, and their ranges in the step that is under way."""

    __slots__ = ("_advance", "_column", "_disturbed", "address", "grid", "kept", "numbers", "places", "plan", "start",
                 "step", "words")  # fmt: skip

    def __init__(self, tracks: Sequence[Track], last: Sequence[Range], column: int, native: Functions) -> None:
        """last: the range of each track in the last step, of one token that was sampled from. column: of that token."""
        self._column, self._advance, self._disturbed = column, native.advance, False
        self.numbers = [r.number for r in last]
        self.places = [r.first_row for r in last]
        self.start = [r.position for r in last]
        self.step = 0  # forwards after the last one
        self.plan: Any = None  #: of who captures: how it stored the last step of these rows; None: otherwise
        self.grid: Any = None  #: of who captures: the grid of the last step
        self.kept: Any = None  #: `logits_to_keep` of that
        for t, r in zip(tracks, last, strict=True):
            t.goes_with(self, r.position + 1)
        #: a sonde_range for each row; the library reads them, and who captures fills in the masks
        self.words = array("Q", [w for r in last for w in (r.number, r.position | 1 << 32, _SAMPLED_DECODE, 0)])
        self.address = self.words.buffer_info()[0]

    def disturb(self) -> None:
        """Learn that something else was computed of one of the rows."""
        self._disturbed = True

    def advance(self, column: int, ids: Any, sequences: Any, rows: int, columns: int) -> Decoded | None:
        """Compute the token in a column of each row. None: it is not behind the last one, and nothing changed.

        ids: of the rows of the batch, which must be the last of so many columns of their sequences.
        """
        step = self.step + 1
        if self._disturbed or column != self._column + step:  # or forwards were not seen, as by a disabled capture
            return None
        if not self._advance(ids, sequences, rows, columns, self.address, len(self.numbers)):
            return None
        self.step = step
        return Decoded(self, step)

    def mask(self, masks: Sequence[int]) -> None:
        """Say which layouts have the rows."""
        self.words[_WORDS - 1 :: _WORDS] = array("Q", masks)


class Decoded(Sequence[Range]):
    """The ranges of one step of decoding, which become objects only where somebody looks at them."""

    __slots__ = ("rows", "step")

    def __init__(self, rows: Rows, step: int) -> None:
        """step: of these rows."""
        self.rows, self.step = rows, step

    @property
    def current(self) -> bool:
        """Say whether the words of the rows are those of this step."""
        return self.rows.step == self.step

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows.numbers)

    @overload
    def __getitem__(self, i: int) -> Range: ...
    @overload
    def __getitem__(self, i: slice) -> list[Range]: ...
    def __getitem__(self, i: Any) -> Any:
        """Make the range of a row."""
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        rows = self.rows
        return Range(rows.numbers[i], rows.start[i] + self.step, 1, rows.places[i], 0, Phase.DECODE, True)


def rows_of(tracks: Sequence[Track], last: Sequence[Range], column: int) -> Rows | None:
    """Find the rows that the next step of decoding goes on with; None: the last one was not of that kind."""
    plain = len(tracks) == len(last) > 0 and all(
        r.number == t.number and r.count == 1 and r.pass_ == 0 and r.sampled and r.phase is Phase.DECODE
        for r, t in zip(last, tracks, strict=True)
    )
    native = functions() if plain else None
    return Rows(tracks, last, column, native) if native is not None else None
