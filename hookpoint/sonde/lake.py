"""Reading a lake: only files that its commit log names, and vectors bit for bit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sonde import assembly, commitlog
from sonde.dtypes import widen
from sonde.errors import AmbiguousRequest, IncompleteTensor, LakeError, Missing, NotInLake
from sonde.ledger import COLUMNS, Ledger

TABLES = ("vectors", "tokens", "vector_stats", "requests", "ledger", "detections")

_MERGED = ("engine_id", "adapter", "trace_parent", "reason", "prompt_tokens", "max_tokens", "generated_tokens",
           "cached_tokens", "passes", "opt_in", "labels")  # fmt: skip

_SHARD = ("shard", "shard_count")


@dataclass(frozen=True)
class Tensor:
    """The accepted rows of one sample of one request at one hook, ordered by position."""

    request: str
    sample: int
    hook: str
    layer: int  #: -1: none
    epoch: str  #: of shard 0, or of the first hypothesis, where it was put together of several
    number: int
    dtype: str  #: as it was captured
    #: float32 (int32 or int64 for dtypes i32 and i64), shape (tokens, *shape of a row). Of ragged rows an object array
    #: of shape (tokens,), whose items have the shape (elements, *shape).
    values: np.ndarray
    positions: np.ndarray  #: int32, shape (tokens,)
    passes: np.ndarray  #: int32, shape (tokens,)
    missing: tuple[Missing, ...]  #: with allow_partial only: positions without a row


def open_lake(path: str | os.PathLike[str]) -> Lake:
    """Open the newest commit of the lake in a folder, also while it is written. Raises LakeError."""
    return Lake(Path(path))


class Lake:
    """A lake at one commit; `refresh` goes on to the newest one."""

    def __init__(self, path: Path) -> None:
        """Use `open_lake`."""
        self.path = path
        self._state = commitlog.load(path)

    @property
    def version(self) -> int:
        """Number of the commit that is read. It only rises."""
        return self._state.version

    def refresh(self) -> None:
        """Go on to the newest commit. Raises LakeError."""
        commitlog.refresh(self.path, self._state)

    def files(self, table: str, epoch: str | None = None) -> list[str]:
        """List the committed Parquet files of a table, in the order of the commits; of one epoch only, when given.

        Any Parquet reader may read them. Raises LakeError when a file has another size than the log says.
        """
        if table not in TABLES:
            raise ValueError(f"table {table!r} is unknown; there are {', '.join(TABLES)}")
        out = []
        for f in self._state.files:
            if f.table != table or epoch is not None and epoch not in f.epochs:
                continue
            size = f.path.stat().st_size if f.path.exists() else None
            if size != f.bytes:
                raise LakeError(
                    f"read {f.path}: it has {size} bytes and the log says {f.bytes}: it was changed or removed"
                )
            out.append(str(f.path))
        return out

    def table(self, table: str, columns: list[str] | None = None, **equal: Any) -> pa.Table:
        """Read a table, with the rows where columns have these values; None is any value.

        Row groups whose statistics exclude them are not read. A table of which nothing was stored has no columns.
        """
        filters = [(name, "=", value) for name, value in equal.items() if value is not None]
        files = self.files(table, equal.get("epoch"))
        if not files:
            return pa.table({})
        return pq.read_table(files, columns=columns, filters=filters or None, partitioning=None)

    def vectors(
        self, request: str | None = None, hook: str | None = None, layer: int | None = None, **equal: Any
    ) -> pa.Table:
        """Read rows of table `vectors`: every pass, in the order of the commits; columns as in lakehouse/FORMAT.md.

        `vec` is list<float>, exact, or null where `raw` holds the bytes (dtypes i32 and i64). See `tensor` for numpy.
        """
        return self.table("vectors", request=request, hook=hook, layer=layer, **equal)

    def requests(self) -> pa.Table:
        """Read the requests: one row per sequence, (epoch, number), open and end merged, by the time it opened.

        Columns: tenant, epoch, engine, rank, model, revision, weights_digest, number, request, sample, labels, the
        figures of the table, opened and ended (bool), open_ns and end_ns (int64, ns since 1970, 0 when not known).
        """
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for e in self.table("requests").to_pylist():
            r = found.setdefault((e["epoch"], e["number"]), {})
            for name in ("tenant", "epoch", "engine", "rank", "model", "revision", "weights_digest", "number"):
                r.setdefault(name, e[name])
            for name in ("request", "sample", *_MERGED):
                r[name] = e[name] or r.get(name, e[name])
            for kind, flag, clock in (("open", "opened", "open_ns"), ("end", "ended", "end_ns")):
                r[flag] = r.get(flag, False) or e["event"] == kind
                r[clock] = e["wall_ns"] if e["event"] == kind else r.get(clock, 0)
        return pa.Table.from_pylist(sorted(found.values(), key=lambda r: r["open_ns"] or r["end_ns"]))

    def tensor(
        self,
        request: str,
        hook: str,
        layer: int = -1,
        *,
        sample: int = 0,
        shard: int | None = None,
        epoch: str | None = None,
        number: int | None = None,
        allow_partial: bool = False,
    ) -> Tensor:
        """Read the accepted rows of one hook: of each position the last pass that the engine did not take back.

        The shards of ranks are put together along the last dimension of a row; shard reads one of them.
        A sequence that beam search returned is put together of the hypotheses that it consists of.

        Raises IncompleteTensor when positions lack a row (with allow_partial they are listed in `missing` instead;
        zeros are never filled in), NotInLake, AmbiguousRequest when the id was used more than once and epoch and number
        do not choose, and LakeError when a file is damaged.
        """
        what = f"tensor {hook} layer {layer} of request {request!r} sample {sample}"
        rows = self._rows(request, hook, layer, sample=sample, shard=shard, epoch=epoch, number=number)
        choice = {"request": request, "hook": hook, "layer": layer, "sample": sample, "epoch": epoch, "number": number}
        parts = [] if rows else self._lineage(choice)
        if parts:
            out = self._joined(what, parts, shard, choice)
        elif shard is None and any(r["shard_count"] > 1 for r in rows):
            out = self._whole(what, rows, choice)
        else:
            out = self._one(what, rows, shard=shard or 0, **choice)
        if out.missing and not allow_partial:
            raise IncompleteTensor(what, list(out.missing))
        return out

    def _joined(self, what: str, parts: list[assembly.Part], shard: int | None, choice: dict[str, Any]) -> Tensor:
        """Put a sequence together of the hypotheses that it consists of."""
        found = []
        for part in parts:
            of = {**choice, "sample": part.sample, "epoch": part.epoch, "number": None}
            with contextlib.suppress(NotInLake):  # a hook may have rows of sampled tokens only
                found.append((part, self.tensor(**of, shard=shard, allow_partial=True)))
        if not found:
            raise NotInLake(f"{what}: not in the lake; sonde lake show {choice['request']} lists what there is")
        return replace(assembly.join_lineage(what, found), sample=choice["sample"])

    def _whole(self, what: str, rows: list[dict[str, Any]], choice: dict[str, Any]) -> Tensor:
        """Put the shards of ranks together. Each rank has epochs of its own: the epoch that is asked for is of one."""
        chosen, others = {r["shard"] for r in rows}, dict(choice)
        if choice["epoch"] is not None:
            others |= {"epoch": None, "number": rows[0]["number"]}
            rows = rows + [r for r in self._rows(shard=None, **others) if r["shard"] not in chosen]
        tensors = {
            s: self._one(what, [r for r in rows if r["shard"] == s], shard=s, **(choice if s in chosen else others))
            for s in sorted({r["shard"] for r in rows})
        }
        return assembly.join_shards(what, tensors, {r["shard_count"] for r in rows})

    def _lineage(self, choice: dict[str, Any]) -> list[assembly.Part]:
        """Find of which samples a sequence consists that has no rows of its own."""
        equal = {name: choice[name] for name in ("request", "sample", "epoch", "number")}
        events = self.table("requests", columns=["epoch", "number", "rank", "labels"], **equal)
        return assembly.lineage(choice["request"], choice["sample"], events.to_pylist())

    def _one(
        self,
        what: str,
        rows: list[dict[str, Any]],
        *,
        request: str,
        hook: str,
        layer: int,
        sample: int,
        shard: int,
        epoch: str | None,
        number: int | None,
    ) -> Tensor:
        """Put the rows of one sequence of one rank together, with what is missing."""
        found, cached = self._sequence(rows, request, sample, epoch, number)
        if found is None:
            raise NotInLake(
                f"{what}: not in the lake, nor any event of the request; sonde lake show lists what there is"
            )
        ledger = Ledger(found[1], hook, layer, shard)
        ledger.read(self.table("ledger", columns=COLUMNS, epoch=found[0]).to_pylist())
        last: dict[int, dict[str, Any]] = {}
        for r in rows:
            p = r["position"]
            if not ledger.rejected(p, r["pass"]) and (p not in last or r["pass"] > last[p]["pass"]):
                last[p] = r
        missing = ledger.missing(set(last), cached)
        if not last and not missing:
            raise NotInLake(f"{what}: not in the lake; sonde lake show {request} lists what there is")
        chosen = [last[p] for p in sorted(last)]
        if len({(r["dtype"], r["shape"], r["ragged"]) for r in chosen}) > 1:
            raise LakeError(f"{what}: its rows differ in dtype or shape")
        return Tensor(
            request=request,
            sample=sample,
            hook=hook,
            layer=layer,
            epoch=found[0],
            number=found[1],
            dtype=chosen[0]["dtype"] if chosen else "",
            values=_values(chosen),
            positions=np.array([r["position"] for r in chosen], np.int32),
            passes=np.array([r["pass"] for r in chosen], np.int32),
            missing=tuple(missing),
        )

    def _rows(self, request: str, hook: str, layer: int, **equal: Any) -> list[dict[str, Any]]:
        """Read the rows of a tensor, each with `values`: its elements as one dimension."""
        keys = ["engine", "rank", "epoch", "number", "position", "pass"]
        equal = {"request": request, "hook": hook, "layer": layer, **equal}
        rows: list[dict[str, Any]] = []
        table = self.table("vectors", [*keys, *_SHARD, "dtype", "shape", "ragged", "vec", "raw"], **equal)
        if table.num_rows:
            rows = table.drop_columns(["vec", "raw"]).to_pylist()
            for r, values in zip(rows, _elements(table), strict=True):
                r["values"] = values
        if hook == "token_ids":
            tokens = self.table("tokens", [*keys, *_SHARD, "token_id"], **equal).to_pylist()
            plain = {"dtype": "i32", "shape": "", "ragged": False}
            rows += [{**t, **plain, "values": np.array([t["token_id"]], np.int32)} for t in tokens]
        return rows

    def _sequence(
        self, rows: Iterable[dict[str, Any]], request: str, sample: int, epoch: str | None, number: int | None
    ) -> tuple[tuple[str, int] | None, int]:
        """Find the one sequence that is asked for, and the tokens that it took from the prefix cache."""
        found = {(r["epoch"], r["number"]): 0 for r in rows}
        ranks = {(r["engine"], r["rank"]) for r in rows}
        events = self.table("requests", request=request, sample=sample, epoch=epoch, number=number).to_pylist()
        for e in events:
            key = (e["epoch"], e["number"])
            if key not in found and any(engine == e["engine"] and rank != e["rank"] for engine, rank in ranks):
                continue  # the same request, seen by another rank
            found[key] = max(found.get(key, 0), e["cached_tokens"])
        if len(found) > 1:
            listed = ", ".join(f"{e}/{n}" for e, n in sorted(found)[:8])
            raise AmbiguousRequest(
                f"request {request!r} sample {sample} was computed more than once; choose by epoch and number: {listed}"
            )
        return next(iter(found.items()), (None, 0))


def _elements(table: pa.Table) -> list[np.ndarray]:
    """Give the elements of each row: float32, int32 or int64, one dimension."""
    out: list[np.ndarray] = []
    for batch in table.to_batches():
        vec, raw, dtypes = batch.column("vec"), batch.column("raw"), batch.column("dtype").to_pylist()
        values, offsets = vec.values.to_numpy(zero_copy_only=True), vec.offsets.to_numpy()
        for i, dtype in enumerate(dtypes):
            if vec[i].is_valid:
                out.append(values[offsets[i] : offsets[i + 1]])
            else:
                out.append(widen(dtype, np.frombuffer(raw[i].as_py(), np.uint8)))
    return out


def _values(rows: list[dict[str, Any]]) -> np.ndarray:
    if not rows:
        return np.zeros((0,), np.float32)
    shape = tuple(int(n) for n in rows[0]["shape"].split(",")) if rows[0]["shape"] else ()
    if not rows[0]["ragged"]:
        return np.stack([r["values"].reshape(shape) for r in rows])
    out = np.empty(len(rows), dtype=object)
    for i, r in enumerate(rows):
        out[i] = r["values"].reshape(-1, *shape)
    return out
