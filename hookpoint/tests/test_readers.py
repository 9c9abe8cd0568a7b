"""Fear: only its own code reads the dataset. pyarrow, DuckDB, Polars and DataFusion must agree, bit for bit."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import BINARY, TRILINGUAL, Pipeline, make_pipeline, wait_closed
from witness import read_witness

import sonde

# What enters layer L is what left layer L-1, and layer 0 gets the embedding: the same numbers at two hooks, so that one
# can be stored as vectors and the other as figures.
RULES = """\
    - {name: tensors, hooks: [resid_post, embed, token_ids]}
    - {name: figures, hooks: [resid_pre], as: stats}"""

KEY = ["request", "hook", "layer", "position", "pass"]


@pytest.fixture(scope="module")
def witness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder where the engine writes a hash of each row that it computes, past ring, bus and dataset."""
    return tmp_path_factory.mktemp("witness")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, witness: Path) -> Iterator[sonde.Lake]:
    for p in make_pipeline(tmp_path_factory, str(TRILINGUAL), rules=RULES, engine_args=("--witness", str(witness))):
        for request, prompt in (("en", "The package manager"), ("fr", "Le système de fichiers"), ("de", "Der Befehl")):
            p.complete(request, prompt, 24)
        p.stop_process("engine")
        wait_closed(p)
        strays(p)
        yield sonde.open_lake(p.lake)


def strays(p: Pipeline) -> None:
    """Leave a file that no commit names, as a writer that died would: it must not be read by anybody."""
    table = pq.read_table(sonde.open_lake(p.lake).files("vectors")[0])
    pq.write_table(table, p.lake / "vectors" / "ffffffff-0-0-0.parquet")


def by_pyarrow(files: list[str], columns: list[str]) -> pa.Table:
    return pq.read_table(files, columns=columns)


def by_duckdb(files: list[str], columns: list[str]) -> pa.Table:
    chosen = ", ".join(f'"{c}"' for c in columns)
    return duckdb.sql(f"select {chosen} from read_parquet({files})").to_arrow_table()


def by_polars(files: list[str], columns: list[str]) -> pa.Table:
    return pl.scan_parquet(files).select(columns).collect().to_arrow()


READERS = [by_pyarrow, by_duckdb, by_polars]


def by_datafusion(files: list[str], columns: list[str]) -> pa.Table:
    datafusion = pytest.importorskip("datafusion", reason="NOT RUN: DataFusion as a reader: it is not installed")
    context = datafusion.SessionContext()
    parts = [context.read_parquet(f).select(*(f'"{c}"' for c in columns)).to_arrow_table() for f in files]
    return pa.concat_tables(parts)


def rows_of(column: pa.ChunkedArray) -> Iterator[bytes]:
    """Give the bits of the elements of each row of a list column, whose chunks have offsets of their own."""
    for chunk in column.chunks:
        bits, offsets = chunk.values.to_numpy().view(np.uint32), chunk.offsets.to_numpy()
        for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
            yield bits[start:stop].tobytes()


@pytest.mark.parametrize("read", [*READERS, by_datafusion])
def test_vectors_are_bit_equal_through_each_reader(
    lake: sonde.Lake, read: Callable[[list[str], list[str]], pa.Table]
) -> None:
    table = read(lake.files("vectors"), [*KEY, "vec"])
    keys = [tuple(r.values()) for r in table.select(KEY).to_pylist()]
    got = dict(zip(keys, rows_of(table["vec"]), strict=True))
    own = {}
    for request in ("en", "fr", "de"):
        for hook, layer in (("embed", -1), *(("resid_post", n) for n in range(4))):
            t = lake.tensor(request, hook, layer)
            for position, pass_, row in zip(t.positions, t.passes, t.values, strict=True):
                own[request, hook, layer, int(position), int(pass_)] = row.tobytes()
    assert len(got) == table.num_rows and got == own


@pytest.mark.parametrize("read", [*READERS, by_datafusion])
@pytest.mark.parametrize("name", ["vectors", "tokens", "vector_stats", "requests", "ledger"])
def test_every_column_of_every_table_is_the_same(
    lake: sonde.Lake, read: Callable[[list[str], list[str]], pa.Table], name: str
) -> None:
    columns = pq.read_schema(lake.files(name)[0]).names
    want, got = by_pyarrow(lake.files(name), columns), read(lake.files(name), columns)
    assert got.num_rows == want.num_rows > 0 and got.column_names == columns
    assert sorted(map(plain, got.to_pylist())) == sorted(map(plain, want.to_pylist()))


def plain(row: dict[str, object]) -> str:
    """Write a row so that readers that give maps as dictionaries or as pairs, or NaN, agree."""
    labels = row.get("labels")
    if labels is not None:
        pairs = [tuple(p.values()) if isinstance(p, dict) else tuple(p) for p in labels]  # type: ignore[attr-defined]
        row = {**row, "labels": sorted(pairs)}
    return repr(row)


def averages(lake: sonde.Lake, witnessed: dict[tuple[str, int, int, int, str, int], bytes]) -> dict[int, float]:
    """Compute by layer the average length of what enters it, from vectors that the engine itself vouches for."""
    out = {}
    for layer in range(4):
        hook, at = ("resid_post", layer - 1) if layer else ("embed", -1)
        rows = []
        for request in ("en", "fr", "de"):
            t = lake.tensor(request, hook, at)
            for position, pass_, row in zip(t.positions, t.passes, t.values, strict=True):
                key = (request, 0, int(position), int(pass_))
                digest = hashlib.sha256(row.tobytes()).digest()[:16]
                assert witnessed[(*key, "resid_pre", layer)] == witnessed[(*key, hook, at)] == digest, (key, layer)
                rows.append(row)
        x = np.stack(rows).astype(np.float64)
        assert len(x) == sum(k[4:] == ("resid_pre", layer) for k in witnessed), "rows that nobody stored"
        out[layer] = float(np.sqrt((x * x).sum(axis=1)).astype(np.float32).astype(np.float64).mean())
    return out


SQL = "select layer, avg(l2) from vector_stats group by layer"


def sql_by_duckdb(files: list[str]) -> dict[int, float]:
    duckdb.sql(f"create or replace temp view vector_stats as select * from read_parquet({files})")
    return dict(duckdb.sql(SQL).fetchall())


def sql_by_polars(files: list[str]) -> dict[int, float]:
    frame = pl.scan_parquet(files).with_columns(pl.col("l2").cast(pl.Float64))  # its avg of floats is a float
    return dict(pl.SQLContext(vector_stats=frame).execute(SQL, eager=True).iter_rows())


def sql_by_datafusion(files: list[str]) -> dict[int, float]:
    datafusion = pytest.importorskip("datafusion", reason="NOT RUN: DataFusion as a reader: it is not installed")
    context = datafusion.SessionContext()
    parts = [context.read_parquet(f).to_arrow_table() for f in files]
    context.from_arrow(pa.concat_tables(parts), name="vector_stats")
    answer = pa.table(context.sql(SQL))
    return dict(zip(*(column.to_pylist() for column in answer.columns), strict=True))


def aggregated_by_pyarrow(files: list[str]) -> dict[int, float]:
    answer = pq.read_table(files).group_by("layer").aggregate([("l2", "mean")])
    return dict(zip(answer["layer"].to_pylist(), answer["l2_mean"].to_pylist(), strict=True))


@pytest.mark.parametrize("ask", [sql_by_duckdb, sql_by_polars, sql_by_datafusion, aggregated_by_pyarrow])
def test_the_average_by_layer_is_that_of_the_witness(
    lake: sonde.Lake, witness: Path, ask: Callable[[list[str]], dict[int, float]]
) -> None:
    want = averages(lake, read_witness(witness))
    assert ask(lake.files("vector_stats")) == pytest.approx(want, rel=1e-9), "one rounding to float32 would show"
    assert len(set(want.values())) == 4 and all(v > 0 for v in want.values())


def test_the_card_names_exactly_the_committed_files(lake: sonde.Lake) -> None:
    command = [str(BINARY), "lake", "card", "--lake", str(lake.path), "--license", "cc-by-4.0"]
    subprocess.run(command, check=True, capture_output=True)
    text = (lake.path / "README.md").read_text()
    front = text.split("---\n")[1]
    named = [line.strip(' -"') for line in front.splitlines() if line.strip().endswith('.parquet"')]
    committed = [f.removeprefix(f"{lake.path}/") for table in sonde.lake.TABLES for f in lake.files(table)]
    assert sorted(named) == sorted(committed)
    words = ["license: cc-by-4.0", "config_name: vectors", "| `resid_post` | 0-3 | f32 | 256 |", "| `vector_stats` |"]
    for word in [*words, "duckdb", "polars", "load_dataset", "import sonde", "= stored"]:
        assert word in text, word


def test_a_card_without_a_licence_says_so_and_a_wrong_one_is_refused(lake: sonde.Lake) -> None:
    command = [str(BINARY), "lake", "card", "--lake", str(lake.path), "--out", "-"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "license:" not in text and "No licence was named" in text
    wrong = subprocess.run([*command, "--license", "a\nb: c"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "is no identifier" in wrong.stderr


@pytest.mark.parametrize("name", sonde.lake.TABLES)
def test_hugging_face_datasets_loads_every_table_of_the_card(
    lake: sonde.Lake, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="NOT RUN: Hugging Face datasets: it is not installed")
    subprocess.run([str(BINARY), "lake", "card", "--lake", str(lake.path)], check=True, capture_output=True)
    stored = [n for n in sonde.lake.TABLES if lake.files(n)]
    assert sorted(datasets.get_dataset_config_names(str(lake.path))) == sorted(stored)
    if name not in stored:
        with pytest.raises(ValueError, match=name):
            datasets.load_dataset(str(lake.path), name, split="train", cache_dir=str(tmp_path))
        return
    got = datasets.load_dataset(str(lake.path), name, split="train", cache_dir=str(tmp_path))
    want = lake.table(name)
    missing = {"labels"} if name == "requests" else set()
    assert set(want.column_names) - set(got.column_names) == missing, "it has no type for maps"
    assert got.num_rows == want.num_rows > 0, "rows of files that no commit names, or lost ones"
    columns = [c for c in want.column_names if c not in missing]
    theirs = got.with_format("arrow")[:].select(columns).to_pylist()
    assert sorted(map(plain, theirs)) == sorted(map(plain, want.select(columns).to_pylist()))
