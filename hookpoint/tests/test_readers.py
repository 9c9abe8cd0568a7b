"""Fear: only its own code reads the dataset. pyarrow, DuckDB, Polars and DataFusion must agree, bit for bit."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import BINARY, TRILINGUAL, Pipeline, make_pipeline, wait_closed

import sonde

# What enters layer L is what left layer L-1, and layer 0 gets the embedding: the same numbers at two hooks, so that one
# can be stored as vectors and the other as figures.
RULES = """\
    - {name: tensors, hooks: [resid_post, embed, token_ids]}
    - {name: figures, hooks: [resid_pre], as: stats}"""

KEY = ["request", "hook", "layer", "position", "pass"]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sonde.Lake]:
    for p in make_pipeline(tmp_path_factory, str(TRILINGUAL), rules=RULES):
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


def averages(lake: sonde.Lake) -> dict[int, float]:
    """Compute by layer the average length of what enters it, from the stored vectors."""
    out = {}
    for layer in range(4):
        hook, at = ("resid_post", layer - 1) if layer else ("embed", -1)
        rows = [lake.tensor(request, hook, at).values for request in ("en", "fr", "de")]
        x = np.concatenate(rows).astype(np.float64)
        out[layer] = float(np.sqrt((x * x).sum(axis=1)).astype(np.float32).astype(np.float64).mean())
    return out


def test_the_figures_are_those_of_the_vectors(lake: sonde.Lake) -> None:
    files, want = lake.files("vector_stats"), averages(lake)
    sql = f"select layer, avg(l2) from read_parquet({files}) group by layer order by layer"
    frame = pl.scan_parquet(files).group_by("layer").agg(pl.col("l2").cast(pl.Float64).mean()).collect()
    arrow = pq.read_table(files).group_by("layer").aggregate([("l2", "mean")])
    for got in (
        dict(duckdb.sql(sql).fetchall()),
        dict(frame.iter_rows()),
        dict(zip(arrow["layer"].to_pylist(), arrow["l2_mean"].to_pylist(), strict=True)),
    ):
        assert got == pytest.approx(want, rel=1e-9), "one rounding to float32 in 1e7 rows would show"
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
