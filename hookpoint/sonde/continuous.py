"""Continuous batching: the scheduler's final packed layout says whose tokens a forward computes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from sonde.generation import Given
from sonde.identity import Book, Naming, Track
from sonde.step import Finish, Phase, Range, Unidentified

MAX_NAMES = 65536  # requests that are known by name; the oldest is forgotten
CHILD = "__child#"  # between the id of a request and the number of a further sample


class Continuous:
    """The managers of one model and the requests that they compute."""

    def __init__(self, book: Book, naming: Callable[[], Naming]) -> None:
        """naming: what the next requests are called, one prompt after the other in the order of the inputs."""
        self._book, self._naming = book, naming
        self._managers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._lock, self._watched = threading.Lock(), 0
        self._names: dict[tuple[int, str], dict[str, Any]] = {}  # (manager, request id) of what was added
        self._lists: dict[int, list[dict[str, Any]]] = {}  # names of the prompts being added
        self._tracks: dict[tuple[int, str], tuple[Track, Any]] = {}  # with the scheduler's state of the request

    def watch(self, manager: Any) -> None:
        """Learn the names of the requests that a manager is given, by wrapping its methods."""
        if manager in self._managers:
            return
        self._watched += 1
        me = self._managers[manager] = self._watched
        add_request, add_requests = manager.add_request, manager.add_requests

        def named_request(input_ids: list[int], request_id: str | None = None, **kwargs: Any) -> str | None:
            with self._lock:
                waiting = self._lists.get(id(input_ids))
                name = waiting.pop(0) if waiting else None
                if name is None and request_id is not None:  # the caller's own id
                    name = {**self._naming().without_requests().of(0), "external_id": request_id}
                if name is not None and request_id is not None:
                    self._names[me, request_id] = name
                while len(self._names) > MAX_NAMES:
                    self._names.pop(next(iter(self._names)))
            return add_request(input_ids, request_id, **kwargs)

        def named_requests(inputs: list[list[int]], *args: Any, **kwargs: Any) -> list[str]:
            names = self._naming()
            if not names.fits(len(inputs)):
                names = names.without_requests()
            with self._lock:
                for i, prompt in enumerate(inputs):  # a scheduler may sort them: a list is known by its identity
                    self._lists.setdefault(id(prompt), []).append(names.of(i))
            try:
                return add_requests(inputs, *args, **kwargs)
            finally:
                with self._lock:
                    self._lists.clear()

        manager.add_request, manager.add_requests = named_request, named_requests

    def forward(self, given: Given) -> list[Range]:
        """Name the rows of a forward. Raises Unidentified."""
        manager, requests = self._layout(given)
        self.sweep(manager)
        starts = given.kwargs["cu_seq_lens_q"].tolist()
        positions = given.positions.flatten().tolist() if given.positions is not None else []
        out: list[Range] = []
        for i, future in enumerate(requests):
            state, count = future.state, future.query_length
            start, position = starts[i], state.position_offset - future.query_length
            places = list(range(position, position + count))
            if starts[i + 1] - start != count or positions[start : start + count] != places:
                raise Unidentified("the batch is packed otherwise than the scheduler says")
            track = self._track(manager, state, position)
            new = 1 if future.has_new_token else 0
            prompt = min(max(track.prompt - position, 0), count)
            out += track.take(position, prompt, start, Phase.PREFILL, Phase.RECOMPUTE, new if prompt == count else 0)
            out += track.take(position + prompt, count - prompt, start + prompt, Phase.DECODE, Phase.RECOMPUTE, new)
        return out

    def close(self) -> None:
        """End everything and leave the managers as they were."""
        for manager in list(self._managers):
            for name in ("add_request", "add_requests"):
                manager.__dict__.pop(name, None)
        for key in list(self._tracks):
            self._end(key)

    def sweep(self, manager: Any) -> None:
        """End the requests that a manager does not have any more."""
        scheduler = manager.batch_processor.scheduler
        for key in list(self._tracks):
            there = (
                key[0] != self._managers[manager]
                or key[1] in scheduler.active_requests
                or key[1] in scheduler.waiting_requests
            )
            if not there:
                self._end(key)

    def sweep_finished(self) -> None:
        """End the requests that are finished."""
        for key, (_, state) in list(self._tracks.items()):
            if state.status.name in ("FINISHED", "FAILED"):
                self._end(key)

    def _end(self, key: tuple[int, str]) -> None:
        track, state = self._tracks.pop(key)
        finish = Finish.ERROR if state.error else Finish.ABORT
        if state.status.name == "FINISHED":
            finish = Finish.LENGTH if state.generated_len() >= state._new_tokens_limit else Finish.STOP
        before = len(state.initial_tokens) - track.prompt  # generated before the request was preempted
        self._book.end(track, finish, before + state.generated_len())

    def _layout(self, given: Given) -> tuple[Any, Sequence[Any]]:
        for manager in list(self._managers):
            processor = getattr(manager, "batch_processor", None)
            if processor is None or processor.cache is not given.kwargs.get("cache"):
                continue
            io = processor.inputs_and_outputs
            io = io.io_pairs[io.current_pair].host_io if hasattr(io, "io_pairs") else io
            active = processor.scheduler.active_requests
            if any(active.get(f.state.request_id) is not f.state for f in io.requests_in_batch):
                raise Unidentified("a batch of requests that the scheduler does not have, as in a warm-up")
            return manager, io.requests_in_batch
        raise Unidentified("a packed batch of a manager that was made before the capture was attached")

    def _track(self, manager: Any, state: Any, position: int) -> Track:
        me = self._managers[manager]
        key = (me, state.request_id)
        if key in self._tracks and self._tracks[key][1] is not state and not state._true_initial_tokens:
            self._end(key)  # the id is used again; a request that was preempted has tokens from before
        if key in self._tracks:
            track = self._tracks[key][0]
        else:
            parent, child, number = state.request_id.rpartition(CHILD)
            forked = bool(child) and number.isdecimal() and (me, parent) in self._names
            with self._lock:
                name = self._names.get((me, parent if forked else state.request_id))
                if name is None:
                    name = self._naming().without_requests().of(0)
                    self._names[me, state.request_id] = name
            prompt = state._true_initial_tokens or len(state.initial_tokens)
            limit = state.max_new_tokens or 0
            track = self._book.open(name, int(number) + 1 if forked else 0, prompt, position, limit)
        self._tracks[key] = (track, state)
        return track
