"""The commit log of a lake: which files exist. lakehouse/FORMAT.md documents it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from sonde.errors import LakeError

#: Format of what tells of partition 0 alone, and of all else.
FORMATS = (1, 2)

#: Bytes of one file of the log that are read at most.
MAX_FILE_BYTES = 256 << 20

_NAME = re.compile(r"(\d{20})(\.checkpoint)?\.json")


@dataclass(frozen=True)
class DataFile:
    """A Parquet file that the log names."""

    table: str
    path: Path
    rows: int
    bytes: int
    epochs: tuple[str, ...]


@dataclass
class State:
    """What the log says up to entry `version`."""

    version: int = 0
    files: list[DataFile] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)


def load(lake: Path) -> State:
    """Read the newest state. Raises LakeError, which names the file that is damaged, or says that this is no lake."""
    folder = lake / "_log"
    if not folder.is_dir():
        raise LakeError(
            f"open {lake}: it has no folder _log, so it is no lake: run the materializer (sonde run), which makes it"
        )
    newest = {False: 0, True: 0}
    for path in folder.iterdir():
        if m := _NAME.fullmatch(path.name):
            newest[bool(m[2])] = max(newest[bool(m[2])], int(m[1]))
    if newest[False] == 0:
        raise LakeError(f"open {lake}: its log is empty: run the materializer (sonde run), which fills it")
    state = _checkpoint(lake, newest[True]) if newest[True] else State()
    refresh(lake, state)
    if state.version < newest[False]:
        raise LakeError(
            f"open {lake}: entry {state.version + 1} of the log is missing, and there is entry {newest[False]}"
        )
    return state


def refresh(lake: Path, state: State) -> None:
    """Read the entries behind a state into it. Raises LakeError."""
    while (path := lake / "_log" / f"{state.version + 1:020d}.json").exists():
        entry = _read(path)
        if entry.get("version") != state.version + 1:
            raise LakeError(f"read {path}: it says version {entry.get('version')}")
        state.files += _files(lake, path, entry)
        state.version, state.totals = entry["version"], entry.get("totals", {})


def _checkpoint(lake: Path, version: int) -> State:
    path = lake / "_log" / f"{version:020d}.checkpoint.json"
    checkpoint = _read(path)
    state = State(version=version, totals=checkpoint.get("totals", {}))
    for ref in checkpoint.get("manifests") or []:
        name = str(ref.get("name"))
        if PurePosixPath(name).name != name:
            raise LakeError(f"read {path}: manifest {name[:80]!r} does not lie in the log")
        state.files += _files(lake, path.with_name(name), _read(path.with_name(name)))
    return state


def _files(lake: Path, source: Path, said: dict[str, Any]) -> list[DataFile]:
    out = []
    for f in said.get("files") or []:
        try:
            path = PurePosixPath(f["path"])
            if path.is_absolute() or ".." in path.parts:
                raise LakeError(f"read {source}: file {f['path'][:80]!r} does not lie in the lake")
            out.append(DataFile(f["table"], lake / path, int(f["rows"]), int(f["bytes"]), tuple(f.get("epochs") or ())))
        except (KeyError, TypeError, ValueError) as e:
            raise LakeError(f"read {source}: its list of files is wrong: {e!r:.100}") from e
    return out


def _read(path: Path) -> dict[str, Any]:
    """Read and check a file of the log: a line of JSON, and a line with its CRC-32C."""
    try:
        with path.open("rb") as f:
            data = f.read(MAX_FILE_BYTES + 1)
    except OSError as e:
        raise LakeError(f"read the log: {e}") from e
    body, newline, rest = data.partition(b"\n")
    try:
        if not newline or len(data) > MAX_FILE_BYTES:
            raise ValueError("it has no second line, or is too long")
        want, got = json.loads(rest)["crc32c"], f"{crc32c(body + newline):08x}"
        if want != got:
            raise ValueError(f"its checksum is {got}, but it says {want!r:.20}")
        entry = json.loads(body)
        if entry["format"] not in FORMATS:
            raise ValueError(f"format {entry['format']!r:.20}, and this package reads {FORMATS}: upgrade it")
    except (ValueError, KeyError, TypeError) as e:
        raise LakeError(f"read {path}: {e!s:.200}") from e
    return entry


@cache
def _table() -> list[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        table.append(n)
    return table


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of data; about 10 MB/s, which is enough for the log."""
    table, crc = _table(), 0xFFFFFFFF
    for b in data:
        crc = table[(crc ^ b) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
