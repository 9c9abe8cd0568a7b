"""Messages of the bus: one Arrow IPC stream each, as schema/SCHEMA.md describes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute  # noqa: F401 (pa.compute)

from sonde.dtypes import SIZES, widen
from sonde.errors import DamagedMessage

MAX_BYTES = 32 << 20
MAX_ROWS = 262_144

_COLUMNS = {
    "seq": pa.uint64(),
    "row": pa.uint32(),
    "number": pa.uint64(),
    "request": pa.utf8(),
    "sample": pa.int32(),
    "position": pa.int32(),
    "pass": pa.int32(),
    "phase": pa.uint8(),
    "capture_ns": pa.int64(),
}


@dataclass(frozen=True)
class Batch:
    """Rows of one chain, in the order of their cursors. All arrays have one entry per row; they may be read-only."""

    tenant: str
    engine: str
    rank: int
    epoch: str  #: 16 hex digits, random per start of the engine
    hook: str
    layer: int  #: -1: none
    shard: int  #: part of a tensor that is split over ranks
    shard_count: int
    dtype: str  #: as it was captured: f32 f16 bf16 f8e4m3 f8e5m2 i32 u8 i64 u16 i8
    shape: tuple[int, ...]  #: of one row; of one element of a row when ragged
    ragged: bool  #: rows differ in length
    model: str
    revision: str
    weights_digest: str
    #: float32 (int32 or int64 for dtypes i32 and i64), shape (rows, *shape), widened exactly. Of ragged rows an object
    #: array of shape (rows,), whose items have the shape (elements, *shape).
    vectors: np.ndarray
    requests: np.ndarray  #: object (str): external request id
    numbers: np.ndarray  #: uint64: sequence number, unique in the epoch
    samples: np.ndarray  #: int32
    positions: np.ndarray  #: int32: absolute token position, from 0
    passes: np.ndarray  #: int32: 0 for the first computation of the position
    phases: np.ndarray  #: uint8: 0 prefill, 1 decode, 2 recompute
    capture_ns: np.ndarray  #: int64: wall clock, ns since 1970
    seq: np.ndarray  #: uint64: capture that held the row
    row: np.ndarray  #: uint32: place of the row in the capture

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.seq)


@dataclass(frozen=True)
class Message:
    """A decoded message, before rows are chosen."""

    meta: dict[str, str]
    batch: pa.RecordBatch
    layer: int
    shape: tuple[int, ...]
    prev: tuple[int, int]

    @property
    def chain(self) -> tuple:
        """Identity of the chain."""
        m = self.meta
        return (m["epoch"], m["kind"], m["tenant"], m["hook"], self.layer, m["shard"])

    def column(self, name: str) -> np.ndarray:
        """Give a numeric column, shape (rows,)."""
        return self.batch.column(name).to_numpy(zero_copy_only=False)

    def choose(self, keep: np.ndarray) -> Batch:
        """Make a batch of the rows where keep, bool of shape (rows,), is true."""
        m, everything = self.meta, bool(keep.all())

        def pick(name: str) -> np.ndarray:
            values = self.column(name)
            return values if everything else values[keep]

        return Batch(
            tenant=m["tenant"],
            engine=m["engine"],
            rank=int(m["rank"]),
            epoch=m["epoch"],
            hook=m["hook"],
            layer=self.layer,
            shard=int(m["shard"]),
            shard_count=int(m["shard_count"]),
            dtype=m["dtype"],
            shape=self.shape,
            ragged=m["ragged"] == "true",
            model=m["model"],
            revision=m["revision"],
            weights_digest=m["weights_digest"],
            vectors=_vectors(self, keep, everything),
            requests=pick("request"),
            numbers=pick("number"),
            samples=pick("sample"),
            positions=pick("position"),
            passes=pick("pass"),
            phases=pick("phase"),
            capture_ns=pick("capture_ns"),
            seq=pick("seq"),
            row=pick("row"),
        )


def _vectors(message: Message, keep: np.ndarray, everything: bool) -> np.ndarray:
    vec, dtype = message.batch.column("vec"), message.meta["dtype"]
    if pa.types.is_fixed_size_binary(vec.type):
        width = vec.type.byte_width
        raw = (
            np.frombuffer(vec.buffers()[1], np.uint8, len(vec) * width, vec.offset * width)
            if width
            else np.zeros(0, "u1")
        )
        raw = raw.reshape(len(vec), width)
        raw = raw if everything else raw[keep]
        return widen(dtype, raw.reshape(-1)).reshape(len(raw), *message.shape)
    chosen = np.flatnonzero(keep)
    out = np.empty(len(chosen), dtype=object)
    for i, k in enumerate(chosen):
        row = np.frombuffer(vec[int(k)].as_buffer(), np.uint8)
        out[i] = widen(dtype, row).reshape(-1, *message.shape)
    return out


def cursor(text: str) -> tuple[int, int]:
    """Read a cursor `seq:row`. Raises DamagedMessage."""
    seq, colon, row = text.partition(":")
    if not (colon and seq.isdecimal() and row.isdecimal()):
        raise DamagedMessage(f"read the cursor {text[:60]!r}: it is not seq:row")
    return int(seq), int(row)


def decode(data: bytes) -> Message:
    """Decode a `vectors` message that may come from anywhere. Raises DamagedMessage with one sentence."""
    if len(data) > MAX_BYTES:
        raise DamagedMessage(f"decode a message: it has {len(data)} bytes, at most {MAX_BYTES}")
    try:
        with pa.ipc.open_stream(data) as reader:
            meta = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
            batch = reader.read_next_batch()
        batch.validate(full=True)
    except (pa.ArrowException, OSError, StopIteration, UnicodeDecodeError) as e:
        raise DamagedMessage(f"decode a message: it is no Arrow IPC stream of one batch: {e}") from e
    meta = {k.removeprefix("sonde."): v for k, v in meta.items() if k.startswith("sonde.")}
    version = meta.get("version", "")
    if version.partition(".")[0] != "1":
        raise DamagedMessage(
            f"decode a message: it has schema version {version[:20]!r} and this package reads 1: upgrade it"
        )
    try:
        return _check(meta, batch)
    except (KeyError, ValueError) as e:
        raise DamagedMessage(f"decode a message: its metadata is wrong: {e!r:.200}") from e


def _check(meta: dict[str, str], batch: pa.RecordBatch) -> Message:
    for name in ("tenant", "engine", "hook", "model", "revision", "weights_digest"):
        meta[name]  # noqa: B018 (a missing key is the error)
    if len(bytes.fromhex(meta["epoch"])) != 8 or meta["ragged"] not in ("true", "false"):
        raise DamagedMessage(f"decode a message: no epoch is {meta['epoch'][:20]!r}, or ragged {meta['ragged'][:20]!r}")
    if meta["kind"] != "vectors":
        raise DamagedMessage(f"decode a message: it holds {meta['kind'][:20]!r}, not vectors")
    shape = tuple(int(n) for n in meta["shape"].split(",")) if meta["shape"] else ()
    size = SIZES[meta["dtype"]] * math.prod(shape)
    if any(n < 0 for n in shape) or size == 0 and meta["ragged"] == "true":
        raise DamagedMessage(f"decode a message: no row has the shape {meta['shape'][:60]!r}")
    if not 0 < batch.num_rows <= MAX_ROWS:
        raise DamagedMessage(f"decode a message: it has {batch.num_rows} rows, from 1 to {MAX_ROWS}")
    want = {**_COLUMNS, "vec": pa.large_binary() if meta["ragged"] == "true" else pa.binary(size)}
    for name, kind in want.items():
        places = batch.schema.get_all_field_indices(name)
        if len(places) != 1 or batch.schema.field(places[0]).type != kind or batch.column(places[0]).null_count:
            raise DamagedMessage(f"decode a message: it has no column {name} of {kind} without nulls")
    if meta["ragged"] == "true":
        lengths = pa.compute.binary_length(batch.column("vec")).to_numpy()
        if (lengths % size).any():
            raise DamagedMessage(f"decode a message: a ragged row is no multiple of {size} bytes")
    message = Message(meta, batch, int(meta["layer"]), shape, cursor(meta["prev"]))
    int(meta["rank"]), int(meta["shard"]), int(meta["shard_count"])
    seq, row = message.column("seq"), message.column("row")
    rising = (seq[1:] > seq[:-1]) | ((seq[1:] == seq[:-1]) & (row[1:] > row[:-1]))
    if not rising.all() or (int(seq[0]), int(row[0])) < message.prev and message.prev[1] != (1 << 32) - 1:
        raise DamagedMessage("decode a message: its rows do not rise from its prev cursor")
    return message
