"""Reads what an engine with `--witness` writes: a hash of every row that it computed, past the ring."""

from __future__ import annotations

import io
import struct
from pathlib import Path

MAGIC = b"SONDEWIT"
HASH_BYTES = 16
SAMPLED = 1  # hooks whose rows exist only for tokens that were sampled from

Witnessed = dict[tuple[str, int, int, int, str, int], bytes]


def read_witness(folder: Path) -> Witnessed:
    """Give (request, sample, position, pass, hook, layer) to the first bytes of the SHA-256 of the row."""
    rows: Witnessed = {}
    for name in sorted(folder.glob("*.witness")):
        data = io.BytesIO(name.read_bytes())
        hooks: list[tuple[str, int, int]] = []
        while head := data.read(8):  # length and checksum
            record = io.BytesIO(data.read(struct.unpack("<II", head)[0]))
            if hooks:
                _step(record, hooks, rows)
            else:
                hooks = _hooks(record)
    assert rows, f"{folder} holds no witness"
    return rows


def _number(record: io.BytesIO, form: str = "<i") -> int:
    return int(struct.unpack(form, record.read(struct.calcsize(form)))[0])


def _text(record: io.BytesIO) -> str:
    return record.read(_number(record)).decode()


def _hooks(record: io.BytesIO) -> list[tuple[str, int, int]]:
    assert record.read(len(MAGIC)) == MAGIC and _number(record) == 1, "this is no witness of version 1"
    _number(record, "<Q")  # the epoch
    return [(_text(record), _number(record), record.read(1)[0]) for _ in range(_number(record))]


def _step(record: io.BytesIO, hooks: list[tuple[str, int, int]], rows: Witnessed) -> None:
    ranges = []
    for _ in range(_number(record)):
        request, (sample, pass_, position, count) = _text(record), struct.unpack("<4i", record.read(16))
        ranges.append((request, sample, pass_, position, count, record.read(1)[0]))
    for hook, layer, select in hooks:
        for request, sample, pass_, position, count, sampled in ranges:
            chosen = range(count) if select != SAMPLED else range(count - 1, count) if sampled else range(0)
            for j in chosen:
                rows[request, sample, position + j, pass_, hook, layer] = record.read(HASH_BYTES)
