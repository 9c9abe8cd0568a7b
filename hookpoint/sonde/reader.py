"""Messages of a JetStream stream, in order, whatever happens to the server in between.

The reader asks for messages with pulls that are bounded in bytes, checks that none was lost on the way by the number
that the consumer gives each, and starts a new consumer behind the last message whenever something goes wrong.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

import nats
from nats.aio.client import Client
from nats.errors import Error as NATSError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from sonde.errors import SondeError

T = TypeVar("T")

#: Bytes and messages that one pull asks for: at least one message of the largest size.
PULL_BYTES = 40 << 20
PULL_MESSAGES = 256

_PULL_SECONDS = 30
_HEARTBEAT = 2.0
_STEP = 0.5  # seconds that one call of connect or next takes at most without a result
_ASK = 2.0  # seconds that the server has to answer a question
_FORGET = 300.0  # seconds after which the server forgets a consumer that asks for nothing
_NOT_FOUND = 10059  # the server's code for a stream that does not exist


class _NoStreamError(NATSError):
    """The stream does not exist."""


class Reader:
    """Reader of one subject of one stream. Its methods run in one event loop."""

    def __init__(
        self, url: str, stream: str, subject: str, since: str | int | datetime | None, options: dict[str, Any]
    ) -> None:
        """since: as of sonde.subscribe, without timedelta. Connects to nothing yet."""
        self.whole = False  #: the start of each chain was asked for and may be trimmed; known once connected
        self._url, self._stream, self._subject, self._since, self._options = url, stream, subject, since, options
        self._nc: Client | None = None
        self._connecting: asyncio.Task[Client] | None = None
        self._error = ""
        self._refused = ""
        self._next = 0  # position in the stream; 0: not known yet
        self._created = ""  # incarnation of the stream
        self._inbox: Any = None
        self._consumer = ""
        self._consumer_seq = 0
        self._credit = 0  # messages that the running pull may still bring
        self._heard = 0.0

    async def partitions(self) -> int | None:
        """Count the partitions of the stream. None: not yet; call it again. Raises SondeError as connect does."""
        return await self._try(self._count, 2 * _ASK + _STEP)

    async def connect(self) -> bool | None:
        """Connect and find the stream. None: not yet; call it again. Raises SondeError when the login is refused."""
        return await self._try(self._open, _ASK + _STEP)

    async def _try(self, step: Callable[[], Awaitable[T]], seconds: float) -> T | None:
        try:
            return await asyncio.wait_for(step(), seconds)
        except (NATSError, OSError, asyncio.TimeoutError) as e:
            self._note(e)
            await asyncio.sleep(_STEP)
            return None
        finally:
            if self._refused:
                raise SondeError(
                    f"subscribe: {self._url_shown()} refuses the login: {self._refused}; pass user and password in the "
                    "address, or options={'user': …, 'password': …}"
                )

    async def next(self) -> bytes | None:
        """Give the next message. None: there is none yet; call it again."""
        try:
            return await asyncio.wait_for(self._step(), _ASK + 2 * _STEP)
        except (NATSError, OSError, asyncio.TimeoutError) as e:
            self._note(e)
            await self._drop()
            await asyncio.sleep(_STEP / 5)
            return None

    def trouble(self) -> str:
        """Say what is wrong."""
        if self._nc is None or not self._nc.is_connected:
            return f"no answer from {self._url_shown()}" + (f" ({self._error})" if self._error else "")
        return f"stream {self._stream} cannot be read" + (f" ({self._error})" if self._error else "")

    async def hint(self) -> str:
        """Say what may be wrong when nothing arrives; empty: nothing is."""
        if self._nc is None or not self._nc.is_connected or self._inbox is None:
            return f"{self.trouble()}; still trying"
        try:
            *place, _, _, _ = self._subject.split(".")
            vectors = ".".join([*place[:2], *("*" * len(place[2:])), "vectors", ">"])
            info = await self._info({"subjects_filter": vectors})
        except (NATSError, OSError, asyncio.TimeoutError):
            return f"{self.trouble()}; still trying"
        subjects = info["state"].get("subjects") or {}
        if any(_matches(self._subject, s) for s in subjects):
            return ""  # it exists, and only nothing new happens
        return (
            f"nothing has arrived for {self._subject}, and the stream holds nothing of it; hooks in the stream: "
            f"{_hooks(subjects) or 'none at all: does an engine run, and does the policy choose tensors?'}"
        )

    async def close(self) -> None:
        """Forget the consumer and close the connection."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._nc is None:
            return
        try:
            if self._consumer and self._nc.is_connected:
                await asyncio.wait_for(self._nc.jetstream().delete_consumer(self._stream, self._consumer), 1)
        except (NATSError, OSError, asyncio.TimeoutError):
            pass  # the server forgets it by itself
        await self._nc.close()

    def _url_shown(self) -> str:
        """Address without a password."""
        scheme, _, rest = self._url.rpartition("://")
        return (scheme + "://" if scheme else "") + rest.rpartition("@")[2]

    def _note(self, e: BaseException) -> None:
        self._error = str(e) or self._error or type(e).__name__

    async def _on_error(self, e: Exception) -> None:
        self._note(e)
        if "authorization violation" in str(e).lower():
            self._refused = str(e)

    async def _lost(self) -> None:
        await self._drop()

    async def _open(self) -> bool:
        await self._connected()
        await self._consume()
        return True

    async def _connected(self) -> None:
        if self._nc is None:
            if self._connecting is None:
                self._connecting = asyncio.ensure_future(self._dial())
            self._nc = await asyncio.shield(self._connecting)

    async def _count(self) -> int:
        await self._connected()
        try:
            await self._info({})
        except _NoStreamError:
            first = await self._info({}, f"{self._stream}-0")
            return int(first["config"]["subjects"][0].rpartition(".")[2].partition("of")[2])  # like sonde.v1.*.0of3
        return 1

    async def _dial(self) -> Client:
        settings = {
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": _STEP,
            "connect_timeout": 2,
            "name": "sonde-python",
            "error_cb": self._on_error,
            "disconnected_cb": self._lost,
        }
        return await nats.connect(self._url, **{**settings, **self._options})

    async def _info(self, question: dict[str, str], stream: str = "") -> dict[str, Any]:
        assert self._nc is not None
        name = stream or self._stream
        reply = await self._nc.request(f"$JS.API.STREAM.INFO.{name}", json.dumps(question).encode(), timeout=_ASK)
        info = json.loads(reply.data)
        if "error" in info:
            kind = _NoStreamError if info["error"].get("err_code") == _NOT_FOUND else NATSError
            raise kind(f"stream {name}: {info['error'].get('description')}")
        return info

    def _place(self, info: dict[str, Any]) -> None:
        """Find the position to read from, at first and when the stream was made anew."""
        first, last = info["state"]["first_seq"], info["state"]["last_seq"]
        if self._created and self._created != info["created"]:
            self._next = 1
        elif self._next == 0:
            trimmed = first > 1
            if self._since is None:
                self._next = last + 1
            elif isinstance(self._since, int):
                self._next, self.whole = self._since, trimmed and self._since < first
            elif isinstance(self._since, datetime):
                oldest = datetime.fromisoformat(info["state"]["first_ts"][:19] + "+00:00")
                self.whole = trimmed and self._since < oldest
            else:
                self._next, self.whole = 1, True
        self._created = info["created"]

    async def _consume(self) -> None:
        """Start a consumer behind the last message."""
        assert self._nc is not None
        await self._drop()
        self._place(await self._info({}))
        config = ConsumerConfig(
            ack_policy=AckPolicy.NONE,
            filter_subject=self._subject,
            inactive_threshold=_FORGET,
            mem_storage=True,
            num_replicas=1,
            max_deliver=1,
        )
        if self._next:
            config.deliver_policy, config.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, self._next
        else:
            config.deliver_policy, config.opt_start_time = DeliverPolicy.BY_START_TIME, self._since
        created = await self._nc.jetstream(timeout=_ASK).add_consumer(self._stream, config)
        self._inbox = await self._nc.subscribe(self._nc.new_inbox(), pending_bytes_limit=2 * PULL_BYTES)
        self._consumer, self._consumer_seq, self._credit = created.name, 0, 0

    async def _drop(self) -> None:
        """Give up the consumer; the server forgets it."""
        inbox, self._inbox, self._credit = self._inbox, None, 0
        if inbox is not None and self._nc is not None and self._nc.is_connected:
            await inbox.unsubscribe()

    async def _step(self) -> bytes | None:
        if self._inbox is None:
            if self._nc is None or not self._nc.is_connected:
                await asyncio.sleep(_STEP)
                return None
            await self._consume()
        if self._credit == 0:
            await self._pull()
        try:
            message = await self._inbox.next_msg(timeout=_STEP)
        except asyncio.TimeoutError:
            if time.monotonic() - self._heard > 3 * _HEARTBEAT:
                await self._drop()
            return None
        self._heard = time.monotonic()
        if message.headers and "Status" in message.headers:
            await self._status(message.headers["Status"], message.headers.get("Description", ""))
            return None
        place = message.metadata.sequence
        if place.consumer != self._consumer_seq + 1:  # one was lost on the way
            await self._drop()
            return None
        self._consumer_seq, self._next, self._credit = place.consumer, place.stream + 1, self._credit - 1
        self._error = ""
        return message.data

    async def _pull(self) -> None:
        assert self._nc is not None
        question = {
            "batch": PULL_MESSAGES,
            "max_bytes": PULL_BYTES,
            "expires": int(_PULL_SECONDS * 1e9),
            "idle_heartbeat": int(_HEARTBEAT * 1e9),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        await self._nc.publish(subject, json.dumps(question).encode(), reply=self._inbox.subject)
        self._credit, self._heard = PULL_MESSAGES, time.monotonic()

    async def _status(self, status: str, description: str) -> None:
        """Take a message of the server about the pull."""
        if status == "100":
            return
        ended = status in ("404", "408") or status == "409" and "exceed" in description.lower()
        self._credit = 0
        if not ended:  # the consumer is gone
            self._error = f"{status} {description}"
            await self._drop()
            await asyncio.sleep(_STEP / 5)


def _matches(pattern: str, subject: str) -> bool:
    want, have = pattern.split("."), subject.split(".")
    return len(want) == len(have) and all(w in ("*", h) for w, h in zip(want, have, strict=True))


def _hooks(subjects: dict[str, int]) -> str:
    """List hooks and layers of subjects, at most 40 hooks."""
    found: dict[str, set[str]] = {}
    for s in subjects:
        *_, hook, layer = s.split(".")
        found.setdefault(hook, set()).add("-" if layer == "_" else layer)
    parts = [f"{h} (layers {', '.join(sorted(found[h], key=lambda n: (len(n), n)))})" for h in sorted(found)[:40]]
    return "; ".join(parts)
