"""CUDA graphs that a user records: the gather is a part of the graph, and each replay is a step of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from sonde.errors import CaptureError
from sonde.step import Range

if TYPE_CHECKING:
    from sonde.attachment import Capture
    from sonde.gather import Recorded
    from sonde.taps import Forward

WARM_UPS = 2  # calls before the recording: the first finds what the model overwrites, the second copies it


class Recording:
    """Takes what one call gathers."""

    def __init__(self, launch: bool) -> None:
        """launch: the stream is recording."""
        self._launch, self.result, self.error = launch, None, None  # type: bool, Recorded | None, Exception | None

    def take(self, record: Callable[[Forward, bool], Recorded], forward: Forward) -> None:
        """Record a forward. What goes wrong is raised by `check`, behind the recording."""
        try:
            if self._launch and self.result is not None:
                raise CaptureError("the call makes more than one forward; a graph captures one")
            self.result = record(forward, self._launch)
        except Exception as e:  # noqa: BLE001 (raised here it would leave the stream recording)
            self.error = e

    def check(self) -> Recorded:
        """Give what was recorded. Raises CaptureError."""
        if self.error is not None:
            raise CaptureError(f"record a graph: {self.error}") from self.error
        if self.result is None:
            raise CaptureError("record a graph: the call makes no forward of the model that is attached")
        return self.result


class Recordings(threading.local):
    """What forwards of each thread record instead of storing it."""

    current: Recording | None = None

    @contextmanager
    def one(self, launch: bool) -> Iterator[Recording]:
        """Record the forward of the block."""
        self.current = Recording(launch)
        try:
            yield self.current
        finally:
            self.current = None


class Graph:
    """A call of the model as a CUDA graph. Made by `Capture.graph`."""

    def __init__(self, capture: Capture, call: Callable[[], Any], pool: Any) -> None:
        """Call, and record a call."""
        if not torch.cuda.is_available():
            raise CaptureError("record a graph: this PyTorch sees no GPU")
        self._capture, self._graph = capture, torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        for _ in range(WARM_UPS):
            with capture.recordings.one(launch=False) as recording, torch.cuda.stream(side):
                call()
            recording.check()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        with capture.recordings.one(launch=True) as recording, torch.cuda.graph(self._graph, pool=pool):
            #: What the call returned: the same tensors, which each replay fills anew.
            self.output = call()
        self._recorded = recording.check()

    def replay(self, ranges: Sequence[Range]) -> None:
        """Run the graph on the current stream, and capture these tokens of it.

        The rows of ranges are the first ones of the batch, without holes; rows behind them are padding. Without
        ranges, and while the capture is disabled, nothing is captured. What goes wrong with the capture is counted and
        reported; the graph runs. Raises CaptureError after detach: the graph writes to memory that was given back.
        """
        with self._capture.recorder.lock:  # the gather that was armed is the next one of all threads
            self._capture.arm(self._recorded, ranges)
            self._graph.replay()
