"""Who is in the forwards of a model of which nothing is known: each row of each call is a request of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from sonde.identity import Book, Naming, runs
from sonde.step import Finish, Phase, Range, Unidentified

_CACHES = ("past_key_values", "past_key_value", "cache", "cache_params")


class Calls:
    """Names the rows of the batch from `requests=`, and counts positions from 0. A cache makes that uncertain."""

    def __init__(self, recorder: Any, naming: Callable[[], Naming], grid: Callable[..., Any]) -> None:
        """grid: finds the batch and the columns of a forward."""
        self._book, self._naming, self._grid = Book(recorder), naming, grid
        self._local = threading.local()

    def ranges(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Range]:
        """Name the rows. Raises Unidentified."""
        if any(kwargs.get(name) is not None for name in _CACHES):
            raise Unidentified("a cache was given, and what it holds is not known; give identity=")
        grid, naming = self._grid(args, kwargs), self._naming()
        naming.check(grid.batch)
        mask = kwargs.get("attention_mask")
        if mask is not None and (not isinstance(mask, torch.Tensor) or tuple(mask.shape) != (grid.batch, grid.seq)):
            raise Unidentified("attention_mask has another shape than the tokens: which are padding is not known")
        masks = [[1] * grid.seq] * grid.batch if mask is None else mask.tolist()
        self._end()
        tracks, out = self._local.tracks, []  # type: list[Track], list[Range]
        for row in range(grid.batch):
            parts = runs(masks[row])
            tokens = sum(count for _, _, count in parts)
            if not tokens:
                continue
            track = self._book.open(naming.of(row), 0, tokens)
            tracks.append(track)
            for column, position, count in parts:
                out += track.take(position, count, row * grid.seq + column, Phase.PREFILL, Phase.RECOMPUTE, 0)
        return out

    def finished(self, module: Any, output: Any) -> None:
        """End the requests of the call."""
        self._end()

    def _end(self) -> None:
        for track in getattr(self._local, "tracks", ()):
            self._book.end(track, Finish.STOP, 0)
        self._local.tracks = []
