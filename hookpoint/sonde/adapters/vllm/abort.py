"""Ends requests of vLLM from outside of the plug-in, by its own abort, and makes sure that they ended.

Detectors need none of this: their aborts come through the ring, and the plug-in ends the sequence. vLLM's own abort has
traps, for which this stands: it takes the external id and ignores the internal one without a word; over HTTP, an empty
list aborts everything, unknown ids are reported as aborted, and the route exists in development mode alone. So an id is
looked up among the sequences that the worker has, exactly, and the answer is given once the worker has them no more.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from sonde.errors import CaptureError

WAIT = 5.0  # seconds until an aborted request must be gone

STOPPED, UNKNOWN, FAILED = "stopped", "unknown", "failed"

DEVELOPMENT = "start vllm serve with VLLM_SERVER_DEV_MODE=1, on an address that nobody else reaches"


class Stopper:
    """Ends requests of one engine. Made by `in_process` or `over_http`."""

    def __init__(self, sequences: Callable[[], list[dict[str, Any]]], abort: Callable[[list[str]], object]) -> None:
        """sequences: what `sonde_sequences` of the worker says. abort: takes external ids."""
        self._sequences, self._abort = sequences, abort

    def stop(self, name: str) -> str:
        """End a request with all its samples, by its id, its external or its internal id.

        Answers "stopped", "unknown": no sequence of that name is computed, or "failed": vLLM still computes it.
        Raises CaptureError for an empty name, and when vLLM does not answer.
        """
        if not name:
            raise CaptureError("stop a request of vLLM: its id is empty, which vLLM would take for all requests")
        externals = {s["external_id"] for s in self._sequences() if name in _names(s)}
        if not externals:
            return UNKNOWN
        self._abort(sorted(externals))
        end = time.monotonic() + WAIT
        while any(s["external_id"] in externals for s in self._sequences()):
            if time.monotonic() > end:
                return FAILED
            time.sleep(0.02)
        return STOPPED


def _names(sequence: dict[str, Any]) -> tuple[str, str, str]:
    return sequence["request"], sequence["external_id"], sequence["engine_id"]


def in_process(engine: Any) -> Stopper:
    """Stop requests of an `LLMEngine` of this process, `llm.llm_engine`, between its steps."""
    return Stopper(lambda: _first(engine.collective_rpc("sonde_sequences")), engine.abort_request)


def over_http(url: str, timeout: float = 10.0) -> Stopper:
    """Stop requests of `vllm serve` at an address like http://127.0.0.1:8000, which runs in development mode."""

    def ask(path: str, body: dict[str, Any]) -> Any:
        question = urllib.request.Request(
            url.rstrip("/") + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(question, timeout=timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as e:
            why = DEVELOPMENT if e.code in (404, 405) else e.read(200).decode("utf-8", "replace")
            raise CaptureError(f"ask vLLM for {path}: it answers {e.code}; {why}") from None
        except (OSError, ValueError) as e:
            raise CaptureError(f"ask vLLM for {path}: {e}; is it at {url}?") from None

    return Stopper(
        lambda: _first(ask("/collective_rpc", {"method": "sonde_sequences"})["results"]),
        lambda externals: ask("/abort_requests", {"request_ids": externals}),
    )


def _first(results: list[Any]) -> list[dict[str, Any]]:
    """Give what the rank that captures says."""
    for found in results:
        if found is not None:
            return found
    raise CaptureError("ask vLLM for its sequences: it runs without the plug-in; see docs/how-to/vllm.md")
