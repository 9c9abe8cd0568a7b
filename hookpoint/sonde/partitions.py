"""All partitions of a stream, read at once.

Of a stream with one partition, the server has one stream of that name. Of one with several, each is a stream of its own
there, and its subjects name it behind the tenant, as schema/SCHEMA.md says.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

from sonde.errors import SondeError
from sonde.reader import Reader


class Partitions:
    """Reader of one subject of a stream, whatever the number of its partitions. Its methods run in one event loop."""

    def __init__(
        self, url: str, stream: str, subject: str, since: str | int | datetime | None, options: dict[str, Any]
    ) -> None:
        """Take what Reader takes. Connects to nothing yet."""
        self._url, self._stream, self._subject, self._since, self._options = url, stream, subject, since, options
        self._counting = Reader(url, stream, subject, since, options)
        self._readers: list[Reader] = []  # empty: their number is not known yet
        self._reading: dict[Reader, asyncio.Task[bytes | None]] = {}

    @property
    def whole(self) -> bool:
        """Say whether the start of some chain was asked for and may be trimmed; known once connected."""
        return any(r.whole for r in self._readers)

    async def connect(self) -> bool | None:
        """Connect and find the stream. None: not yet; call it again. Raises SondeError when the login is refused."""
        if not self._readers:
            count = await self._counting.partitions()
            if count is None:
                return None
            self._readers = [self._counting] if count == 1 else self._several(count)
        found = await asyncio.gather(*(r.connect() for r in self._readers))
        return True if all(found) else None

    def _several(self, count: int) -> list[Reader]:
        if isinstance(self._since, int):
            raise SondeError(
                f"subscribe: stream {self._stream} has {count} partitions, each with positions of its own; pass a time "
                'or "start" as since'
            )
        tokens = self._subject.split(".")
        subject = ".".join([*tokens[:3], "*", *tokens[3:]])
        return [Reader(self._url, f"{self._stream}-{i}", subject, self._since, self._options) for i in range(count)]

    async def next(self) -> bytes | None:
        """Give the next message, of each partition in turn. None: there is none yet; call it again."""
        for reader in self._readers:
            if reader not in self._reading:
                self._reading[reader] = asyncio.ensure_future(reader.next())
        await asyncio.wait(self._reading.values(), return_when=asyncio.FIRST_COMPLETED)
        for reader, task in list(self._reading.items()):
            if task.done():
                del self._reading[reader]
                data = task.result()
                if data is not None:
                    return data
        return None

    def trouble(self) -> str:
        """Say what is wrong."""
        return next(iter(self._readers), self._counting).trouble()

    async def hint(self) -> str:
        """Say what may be wrong when nothing arrives; empty: nothing is."""
        hints = await asyncio.gather(*(r.hint() for r in self._readers or [self._counting]))
        return max(hints, key=len) if all(hints) else ""

    async def close(self) -> None:
        """Forget the consumers and close the connections."""
        for task in self._reading.values():
            task.cancel()
        await asyncio.gather(*(r.close() for r in {self._counting, *self._readers}))
