"""Live subscription: an iterator over what arrives on the bus, with the event loop of the client in a thread."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import datetime, timedelta, timezone
from types import TracebackType
from typing import Any

from sonde.chain import ATTACHED_ANEW, Chains, Cursor, Gap
from sonde.errors import DamagedMessage, SondeError
from sonde.message import Batch, Message, decode
from sonde.partitions import Partitions

#: Seconds without an answer, or without a message, after which a warning says what may be wrong.
HINT_AFTER = 5.0


def subscribe(
    url: str,
    hook: str | None = None,
    layer: int | None = None,
    *,
    tenant: str | None = None,
    request: str | None = None,
    since: str | int | datetime | timedelta | None = None,
    timeout: float | None = None,
    stream: str = "SONDE",
    options: dict[str, Any] | None = None,
) -> Subscription:
    """Subscribe to captured rows. Iterate over the result: it gives `Batch` and `Gap` objects in the order of the
    stream.

    url: address of the NATS server, like nats://127.0.0.1:4222. hook, layer, tenant, request: only these rows; None is
    any; layer -1 is for hooks without one. since: None is what is published from now on; "start" is all that the stream
    still has; a datetime with time zone, a timedelta before now, or a position in the stream are a point in it; of a
    stream with several partitions, each of which keeps its own order, a position is none.
    timeout: seconds without a new row after which the iteration ends; None waits for ever. stream: name of the stream.
    options: passed on to nats.connect, for TLS and credentials.

    Returns when the stream was found; a server that is away is tried again until then and ever after, and a warning
    says so. Raises SondeError when the timeout passed before that, or when the server refuses the login; ValueError for
    arguments that make no sense.
    """
    if isinstance(since, datetime) and since.tzinfo is None:
        raise ValueError("since: a datetime needs a time zone; write datetime.now(timezone.utc), or pass a timedelta")
    if isinstance(since, timedelta):
        since = datetime.now(timezone.utc) - since
    if isinstance(since, str) and since != "start" or isinstance(since, int) and since < 1:
        raise ValueError(f'since {since!r}: write "start", a position from 1, a datetime or a timedelta')
    if layer is not None and layer < -1:
        raise ValueError(f"layer {layer}: write a layer from 0, or -1 for hooks without a layer")
    subject = ".".join(["sonde.v1", _token(tenant), "*.*.vectors", _token(hook), _layer_token(layer)])
    return Subscription(Partitions(url, stream, subject, since, options or {}), request, timeout)


def _token(text: str | None) -> str:
    """Make one subject token of any text, as schema/SCHEMA.md says; None is any."""
    if text is None:
        return "*"
    if text in ("", "_"):
        return "_" if text == "" else "=5F"
    plain = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
    return "".join(chr(b) if b in plain else f"={b:02X}" for b in text.encode())


def _layer_token(layer: int | None) -> str:
    if layer is None:
        return "*"
    return "_" if layer < 0 else str(layer)


class Subscription:
    """Iterator over `Batch` and `Gap` objects; also a context manager. Use it from one thread.

    Memory is bounded: at most 40 MiB of each partition wait in the client, whatever the server has, and one batch is
    decoded at a time. Messages are only requested while somebody iterates, so a slow loop slows nobody down: it falls
    behind, and what the stream has trimmed by then is a gap.
    """

    def __init__(self, reader: Partitions, request: str | None, timeout: float | None) -> None:
        """Use `subscribe`."""
        self._reader, self._request, self._timeout = reader, request, timeout
        self.duplicates = 0  #: rows that had been seen before, and were dropped
        self.damaged = 0  #: messages that could not be decoded; each is a warning, and a gap when more follows
        self._queue: list[Gap | Batch] = []
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sonde-subscribe", daemon=True)
        self._thread.start()
        try:
            if not self._wait(self._reader.connect, timeout):
                raise SondeError(
                    f"subscribe: {self._reader.trouble()} for {timeout:g} s; is `sonde run` up, and its bus there?"
                )
        except BaseException:
            self.close()
            raise
        self._chains = Chains(reader.whole)

    def __iter__(self) -> Iterator[Batch | Gap]:
        """Iterate; the same iterator every time."""
        return self

    def __next__(self) -> Batch | Gap:
        """Wait for the next batch or gap. Raises StopIteration after `timeout` seconds without one, and once closed."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while not self._queue:
            if self._closed:
                raise StopIteration
            left = None if deadline is None else deadline - time.monotonic()
            data = self._wait(self._reader.next, left)
            if data is None:
                raise StopIteration
            self._take(data)
        return self._queue.pop(0)

    def _take(self, data: bytes) -> None:
        try:
            message = decode(data)
        except DamagedMessage as e:
            self.damaged += 1
            warnings.warn(f"a message of the bus is skipped: {e}", stacklevel=3)
            return
        seq, row = message.column("seq"), message.column("row")
        last = (int(seq[-1]), int(row[-1]) + 1)
        hole, new = self._chains.take(message.chain, message.prev, last, seq, row)
        self.duplicates += int(len(new) - new.sum())
        if hole is not None:
            self._queue.append(_gap(message, *hole))
        if self._request is not None:
            new &= message.column("request") == self._request
        if new.any():
            self._queue.append(message.choose(new))

    def _wait(self, step: Any, seconds: float | None) -> Any:
        """Run step(), a coroutine that gives None after a while without a result, in the loop until it gives one.

        Gives None after `seconds`. Warns once per wait when it takes long.
        """
        start, hinted = time.monotonic(), False
        while not self._closed:
            future = asyncio.run_coroutine_threadsafe(step(), self._loop)
            try:
                result = future.result()
            except (FutureTimeout, asyncio.CancelledError):
                result = None
            except BaseException:
                future.cancel()
                raise
            waited = time.monotonic() - start
            if result is not None or seconds is not None and waited >= seconds:
                return result
            if waited >= HINT_AFTER and not hinted and not self._closed:
                hinted = True
                hint = asyncio.run_coroutine_threadsafe(self._reader.hint(), self._loop).result()
                if hint:
                    warnings.warn(hint, stacklevel=4)
        return None

    def close(self) -> None:
        """End the subscription; iterating ends too. May be called twice, and from another thread."""
        if self._closed:
            return
        self._closed = True
        try:
            asyncio.run_coroutine_threadsafe(self._reader.close(), self._loop).result(10)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            if threading.current_thread() is not self._thread:
                self._thread.join(10)
                self._loop.close()

    def __enter__(self) -> Subscription:
        """Give itself."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Close, when nobody holds it any more, as after a `break` out of a loop."""
        if not getattr(self, "_closed", True):
            self.close()


def _gap(message: Message, after: Cursor, before: Cursor) -> Gap:
    m, certain = message.meta, before[1] != ATTACHED_ANEW
    if not certain:
        reason = "an agent attached anew and does not know whether there are rows"
    elif after == (0, 0):
        reason = "trimmed: the stream no longer has the start of this chain"
    else:
        reason = "messages of this chain are missing: trimmed, deleted, or not readable"
    return Gap(
        tenant=m["tenant"],
        engine=m["engine"],
        epoch=m["epoch"],
        hook=m["hook"],
        layer=message.layer,
        shard=int(m["shard"]),
        after=after,
        before=before,
        certain=certain,
        reason=reason,
    )
