"""Plain forward calls: one request per row, continued for as long as its cache is handed on."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any

from sonde.generation import Given, cache_in
from sonde.identity import Book, Naming, Track, clip, name_adapters, runs
from sonde.step import Finish, Phase, Range, Unidentified

Row = tuple[Track | None, list[tuple[int, int, int]]]  # runs: (column, position, count)


class Kept:
    """The sequences whose keys and values a cache holds."""

    def __init__(self, cache: Any, rows: list[Row], columns: int) -> None:
        """Note what the cache looks like now."""
        self.rows, self.columns = rows, columns
        self._seen = _keys(cache)

    def untouched(self, cache: Any) -> bool:
        """Say whether nobody moved, cut or replaced rows of the cache since."""
        now = _keys(cache)
        return len(now) == len(self._seen) and all(old() is new() for old, new in zip(self._seen, now, strict=True))


class Forwards:
    """Forwards outside of `generate`: encoders, training, scoring, and decoding loops of the user's own."""

    def __init__(self, book: Book) -> None:
        """Sequences of a cache end when the cache goes."""
        self._book = book
        self._caches: dict[int, Kept] = {}  # by id of the cache, which removes its entry when it goes
        self._gone: deque[list[Row]] = deque()
        self._last: tuple[list[Row], int, Any] | None = None

    def forward(self, given: Given, naming: Naming, adapters: tuple[str, ...]) -> list[Range]:
        """Name the rows of a forward. Raises Unidentified."""
        self.sweep()
        self._last = None
        past = given.past
        if past is None and id(given.cache) in self._caches:  # a recurrent state
            past = self._caches[id(given.cache)].columns
        if past is None:
            raise Unidentified("how many tokens the cache holds is not known")
        kept = self._caches.get(id(given.cache)) if past else None
        rows = self._continued(kept, given, past) if kept else self._opened(given, past, naming, adapters)
        out: list[Range] = []
        for r, (track, parts) in enumerate(rows):
            for column, position, count in clip(parts, past, past + given.columns) if track is not None else ():
                phase = Phase.DECODE if kept and given.columns == 1 else Phase.PREFILL
                end = 1 if column + count == past + given.columns else 0
                out += track.take(position, count, r * given.columns + column - past, phase, Phase.RECOMPUTE, end)
        self._last = (rows, past + given.columns, given.cache)
        return out

    def packed(self, given: Given, naming: Naming, adapters: tuple[str, ...], starts: list[int]) -> list[Range]:
        """Name the rows of a forward whose one row holds sequences one behind the other, beginning at these columns."""
        self.sweep()
        naming.check(len(starts))
        out: list[Range] = []
        rows: list[Row] = []
        names = [naming.of(i) for i in range(len(starts))]
        name_adapters(names, adapters)
        for i, start in enumerate(starts):
            count = (starts + [given.columns])[i + 1] - start
            track = self._book.open(names[i], 0, count)
            rows.append((track, []))
            out += track.take(0, count, start, Phase.PREFILL, Phase.RECOMPUTE, 1)
        self._last = (rows, 0, None)
        return out

    def finished(self, output: Any) -> None:
        """Learn that the forward ended: what no cache can continue ends."""
        if self._last is None:
            return
        (rows, columns, cache), self._last = self._last, None
        if cache is None and columns:
            cache = cache_in(output) if isinstance(output, Mapping) else None
        if cache is None or not hasattr(cache, "layers"):
            self._end(rows)
            return
        old = self._caches.get(id(cache))
        if old is None:
            weakref.finalize(cache, self._lost, id(cache)).atexit = False
        else:  # continued, or emptied and used again
            now = {track for track, _ in rows}
            self._end([row for row in old.rows if row[0] not in now])
        self._caches[id(cache)] = Kept(cache, rows, columns)

    def sweep(self) -> None:
        """End the sequences whose cache went."""
        while self._gone:
            self._end(self._gone.popleft())

    def close(self) -> None:
        """End everything."""
        self.sweep()
        for kept in list(self._caches.values()):
            self._end(kept.rows)
        self._caches.clear()

    def _lost(self, key: int) -> None:
        # It may run on any thread, between any two instructions: it only notes.
        kept = self._caches.pop(key, None)
        if kept is not None:
            self._gone.append(kept.rows)

    def _end(self, rows: list[Row]) -> None:
        for track, _ in rows:
            if track is not None:
                self._book.end(track, Finish.STOP, track.length - track.prompt)

    def _opened(self, given: Given, past: int, naming: Naming, adapters: tuple[str, ...]) -> list[Row]:
        masks = _masks(given, past)
        naming.check(given.rows)
        parts = [runs(mask) for mask in masks]
        _check(given, past, parts)
        names = [naming.of(r) for r in range(given.rows)]
        name_adapters(names, adapters)
        rows: list[Row] = []
        for name, row in zip(names, parts, strict=True):
            tokens = sum(count for _, _, count in row)
            cached = sum(count for _, _, count in clip(row, 0, past))
            rows.append((self._book.open(name, 0, tokens, cached) if tokens > cached else None, row))
        return rows

    def _continued(self, kept: Kept, given: Given, past: int) -> list[Row]:
        if past != kept.columns or given.rows != len(kept.rows) or not kept.untouched(given.cache):
            del self._caches[id(given.cache)]
            self._end(kept.rows)
            raise Unidentified("past_key_values was changed between two forwards: whose rows it holds is not known")
        masks, rows = _masks(given, past), []
        for (track, before), mask in zip(kept.rows, masks, strict=True):
            parts = runs(mask)
            if clip(parts, 0, past) != clip(before, 0, past) and given.mask is not None:
                raise Unidentified("attention_mask hides other tokens of the cache than before")
            rows.append((track, before + _behind(before, mask[past:], past) if given.mask is None else parts))
        _check(given, past, [parts for _, parts in rows])
        return rows


def _behind(before: list[tuple[int, int, int]], mask: list[int], past: int) -> list[tuple[int, int, int]]:
    known = sum(count for _, _, count in before)
    return [(past + column, known + position, count) for column, position, count in runs(mask)]


def _masks(given: Given, past: int) -> list[list[int]]:
    """Say for each row which of its columns are tokens, those of the cache included."""
    columns = past + given.columns
    if given.mask is None:
        return [[1] * columns for _ in range(given.rows)]
    if isinstance(given.mask, dict) or given.mask.dim() != 2:
        raise Unidentified("attention_mask is not two-dimensional: which columns are tokens is not known")
    if tuple(given.mask.shape) != (given.rows, columns):
        raise Unidentified(f"attention_mask has the shape {tuple(given.mask.shape)} instead of {(given.rows, columns)}")
    return given.mask.tolist()


def _check(given: Given, past: int, rows: list[list[tuple[int, int, int]]]) -> None:
    """Refuse positions that are in another order than the tokens."""
    if given.positions is None or given.positions.dim() != 2:
        return
    table = given.positions.tolist()
    for r, parts in enumerate(rows):
        theirs = table[r if len(table) > 1 else 0]
        inside = [theirs[c - past + i] for c, _, n in clip(parts, past, past + given.columns) for i in range(n)]
        if any(b - a != 1 for a, b in zip(inside, inside[1:], strict=False)):
            raise Unidentified("position_ids do not rise by one from token to token")


def _keys(cache: Any) -> list[Any]:
    """Refer to the keys or states of each layer: whoever moves rows of a cache makes new tensors."""
    found = (getattr(layer, name, None) for layer in cache.layers for name in ("keys", "conv_states"))
    states = [x for parts in found for x in (parts.values() if isinstance(parts, dict) else (parts,))]
    return [weakref.ref(x) for x in states if x is not None]
