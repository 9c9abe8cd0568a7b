"""One call of `generate`: which row of which forward is which position of which sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sonde.decoding import Decoded, Rows, rows_of
from sonde.identity import Book, Naming, Track, clip, name_adapters, runs
from sonde.native import functions
from sonde.step import Finish, Phase, Range, Unidentified

Run = tuple[int, int, int]  # (column, position, count)


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """Find the cache among the arguments of a forward or what it gave: recurrent models have another name for it."""
    cache = arguments.get("past_key_values")
    return arguments.get("cache_params") if cache is None else cache


@dataclass(frozen=True)
class Given:
    """What a forward of a Hugging Face model is given."""

    ids: torch.Tensor | None  #: [rows, columns]
    rows: int
    columns: int
    mask: torch.Tensor | None  #: attention_mask
    positions: torch.Tensor | None  #: position_ids
    cache: Any  #: past_key_values or cache_params
    kwargs: dict[str, Any]

    @property
    def past(self) -> int | None:
        """Count the columns that the cache holds; None: only the device knows."""
        if self.cache is None:
            return 0
        states = [layer for layer in getattr(self.cache, "layers", ()) if hasattr(layer, "has_previous_state")]
        if states and not any(hasattr(layer, "keys") for layer in self.cache.layers):  # recurrent: it has no length
            return None if any(any(s.has_previous_state.values()) for s in states) else 0
        if not hasattr(self.cache, "get_seq_length"):
            return None
        length = self.cache.get_seq_length()
        if isinstance(length, torch.Tensor):
            return int(length) if length.device.type == "cpu" else None
        return length


@dataclass(frozen=True)
class Prompts:
    """What `generate` works on once it has prepared everything, before its first forward."""

    config: Any  #: GenerationConfig, final
    tokens: int  #: columns of input_ids
    mask: torch.Tensor | None  #: [rows, columns], rows expanded
    columns: int  #: of the prompts, those in a cache included
    cached: int  #: columns that the cache holds
    adapters: tuple[str, ...]  #: of each prompt or row; one for all; or none

    @property
    def copies(self) -> int:
        """Count the rows of each prompt."""
        return max(self.config.num_beams or 1, self.config.num_return_sequences or 1)


class Generation:
    """Greedy, sampled and assisted decoding. Rows stay where they are: prompt × copies, in the order of expansion."""

    def __init__(self, book: Book, naming: Naming, prompts: Prompts) -> None:
        """Nothing is opened before the first forward."""
        self.book, self.naming, self.prompts = book, naming, prompts
        self.shift = prompts.columns - prompts.tokens  # from a column of input_ids to a column of the sequences
        self.length = prompts.columns  # columns of the sequences that are decided
        self.computed = prompts.cached  # columns that the cache holds or that were computed
        self.prefilling = True
        self.full: torch.Tensor | None = None  # what the next forward was prepared from
        self.rows: list[Row] = []
        self._step: Sequence[Range] = []  # of the last forward
        self._number = -1
        self._going: Rows | None = None  # what the last forward decoded; None: something else happened since
        self._cache: Any = None  # that it was given
        native = functions()
        self._nothing_ends = native.are_false if native is not None else lambda _: False

    # ---- before a forward ----

    def forward(self, given: Given) -> list[Range]:
        """Name the rows of a forward. Raises Unidentified."""
        if not self.rows:
            self._open(given)
        if given.rows != len(self.rows):
            raise Unidentified(f"a forward of generate has {given.rows} rows instead of {len(self.rows)}")
        self._going = None
        start, stop, drafts = self._columns(given)
        self._check(given, start)
        self._step = self._ranges(given, start, stop, 1 + drafts if stop >= self.length else 0)
        self.computed = stop
        if given.columns == 1 and not self.prefilling and given.past is not None:
            self._going = rows_of([row.track for row in self.rows if row.track is not None], self._step, start)
            self._cache = given.cache
        return self._step

    def decode(self, arguments: Mapping[str, Any]) -> Decoded | None:
        """Name the rows of a forward of one more token for each row, as the last one was; None: ask `forward`.

        It holds the tokens and the length of the same cache against what is expected, as `forward` does.
        """
        going, full, start, cache = self._going, self.full, self.computed, self._cache
        if going is None or full is None or start + 1 != self.length or arguments.get("inputs_embeds") is not None:
            return None
        if cache is None or arguments.get("past_key_values") is not cache or cache.get_seq_length() != start:
            return None
        step = going.advance(start, arguments.get("input_ids"), full, len(self.rows), start - self.shift + 1)
        if step is not None:
            self.full, self._step, self.computed = None, step, start + 1
        return step

    def committed(self, step: int) -> None:
        """Learn the number of the step that has the ranges of the last forward."""
        self._number = step

    def _columns(self, given: Given) -> tuple[int, int, int]:
        """Say which columns are computed, and how many of them are drafts."""
        if self.full is None:
            raise Unidentified("a forward of generate was not prepared by prepare_inputs_for_generation")
        full, self.full = self.full, None
        if self.prefilling and self.prompts.config.prefill_chunk_size is not None:
            start, stop, drafts = self.computed, self.computed + given.columns, 0
            if stop > self.length:
                raise Unidentified(f"a chunk of the prompt ends at column {stop} of {self.length}")
        else:
            stop = self.shift + full.shape[1]
            start, drafts = stop - given.columns, stop - self.length
            if start not in (0, self.computed) or drafts < 0:
                raise Unidentified(f"columns {start} to {stop} are computed after {self.computed} of {self.length}")
        past = given.past
        if past is not None and past != start:
            raise Unidentified(f"the cache holds {past} columns and {start} were expected")
        same = given.ids is None or given.ids.device.type != "cpu" or given.ids.shape[1] > full.shape[1]
        if not same and not torch.equal(given.ids, full[:, full.shape[1] - given.columns :]):
            raise Unidentified("the model is given other tokens than generate prepared")
        return start, stop, drafts

    def _check(self, given: Given, start: int) -> None:
        """Hold the positions of tokens against those that the model is given, while they are a matter of the prompt."""
        if not self.prefilling or given.positions is None or given.positions.dim() != 2:
            return
        table = given.positions.tolist()
        for r, row in enumerate(self.rows):
            theirs = table[r if len(table) > 1 else 0]
            for column, position, count in clip(row.runs, start, start + given.columns):
                if theirs[column - start : column - start + count] != list(range(position, position + count)):
                    raise Unidentified("position_ids are not the places of the tokens in their sequence")

    def _ranges(self, given: Given, start: int, stop: int, sampled: int) -> list[Range]:
        out: list[Range] = []
        for r, row in enumerate(self.rows):
            if row.track is None:
                continue
            first = r * given.columns - start
            prompt = clip(row.runs, start, min(stop, self.prompts.columns)) if start < self.prompts.columns else ()
            for column, position, count in prompt:
                last = sampled if stop <= self.prompts.columns and column + count == stop else 0
                if stop > self.prompts.columns and column + count == self.prompts.columns:
                    last = max(sampled - (stop - self.prompts.columns), 0)
                out += row.track.take(position, count, first + column, Phase.PREFILL, Phase.RECOMPUTE, min(last, count))
            low = max(start, self.prompts.columns)
            if low < stop:
                again = Phase.RECOMPUTE if start == 0 else Phase.DECODE
                position = low - self.prompts.columns + row.prompt
                row.track.skip(position)
                out += row.track.take(position, stop - low, first + low, Phase.DECODE, again, min(sampled, stop - low))
        return out

    # ---- after a forward ----

    def chosen(self, tokens: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
        """Learn the sequences after sampling and which of them the criteria end; return which end, as done or anew."""
        length = self.shift + tokens.shape[1]
        if self._step and self.computed < length - 1:
            raise Unidentified(f"generate chose column {length} after computing {self.computed}")
        self.prefilling = False
        if self.computed >= length:
            self._reject(length - 1 - self.prompts.columns)
        self.computed, self.length, self._step = length - 1, length, []  # also when the capture was disabled
        if self._nothing_ends(done) and not self.book.recorder.stops:
            return done
        flags, stopping = done.tolist(), self.book.recorder.stopping
        out = done
        for r, row in enumerate(self.rows):
            track = row.track
            if track is None:
                continue
            if stopping(track.number):
                out = done.clone() if out is done else out
                flags[r] = out[r] = True
                self._end(row, Finish.DETECTOR)
            elif flags[r]:
                self._end(row, Finish.LENGTH if tokens.shape[1] >= self.prompts.config.max_length else Finish.STOP)
        return out

    def _reject(self, generated: int) -> None:
        """Take back the drafts of the last forward behind so many accepted tokens."""
        accepted = {row.track.number: row.prompt + generated for row in self.rows if row.track is not None}
        drafts = []
        for x in self._step:
            low = max(x.position, accepted[x.number])
            if low < x.position + x.count:
                drafts.append((x.number, low, x.position + x.count - low, x.pass_))
        self.book.reject(self._number, drafts)

    def close(self, result: Any, failed: bool) -> None:
        """Learn what generate returned, or that it raised."""
        for row in self.rows:
            if row.track is not None:
                self._end(row, Finish.ERROR if failed else Finish.STOP)

    # ---- requests ----

    def _open(self, given: Given) -> None:
        copies = self.prompts.copies
        if given.rows % copies:
            raise Unidentified(f"{given.rows} rows are no multiple of {copies} copies of each prompt")
        self.naming.check(given.rows // copies)
        names = [self.naming.of(p) for p in range(given.rows // copies)]
        adapters = self.prompts.adapters
        if len(adapters) == given.rows:  # one for each row
            adapters = adapters[::copies]
        name_adapters(names, adapters)
        masks = self._masks(given.rows)
        for r in range(given.rows):
            parts = runs(masks[r])
            if not parts or sum(parts[-1][::2]) != self.prompts.columns:
                raise Unidentified("a prompt of generate is padded on the right: pad on the left")
            cached = sum(count for _, _, count in clip(parts, 0, self.prompts.cached))
            row = Row(parts, sum(count for _, _, count in parts), None)
            row.track = self._track(names[r // copies], r, row.prompt, cached)
            self.rows.append(row)

    def _masks(self, rows: int) -> Sequence[Sequence[int]]:
        if self.prompts.mask is None:
            return [[1] * self.prompts.columns] * rows
        if tuple(self.prompts.mask.shape) != (rows, self.prompts.columns):
            shape = tuple(self.prompts.mask.shape)
            raise Unidentified(f"an attention mask of shape {shape} does not say which tokens {rows} rows have")
        return self.prompts.mask.tolist()

    def _track(self, name: dict[str, Any], row: int, prompt: int, cached: int) -> Track | None:
        """Open what a row computes."""
        limit = max((self.prompts.config.max_length or 0) - self.prompts.tokens, 0)
        track = self.book.open(name, row % self.prompts.copies, prompt, cached, limit)
        self.book.recorder.will_stop(track.number)
        return track

    def _end(self, row: Row, finish: Finish) -> None:
        if row.track is not None:
            self._going = None
            self.book.end(row.track, finish, self.length - self.prompts.columns)
            row.track = None


@dataclass(slots=True)
class Row:
    """One row of the batch."""

    runs: list[Run]  #: of the prompt
    prompt: int  #: tokens of the prompt
    track: Track | None  #: None: nothing of the row is captured, or any more
