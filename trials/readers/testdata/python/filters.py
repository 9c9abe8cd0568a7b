"""Ask Parquet files for rows through filters that readers use to skip row groups, and compare with all of the rows."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MANY_ROWS = 10_000
COMPARE: dict[str, Callable] = {
    "=": pc.equal,
    "<": pc.less,
    ">": pc.greater,
    "<=": pc.less_equal,
    ">=": pc.greater_equal,
}

# The readers do not agree about NaN, so each one filters in memory, too, what it is asked to filter in the file.


def by_pyarrow(file: str, whole: pa.Table, column: str, op: str, value: object) -> tuple[pa.Table, pa.Table]:
    """Filter by pyarrow: in the file, and in memory."""
    want = whole.filter(COMPARE[op](whole.column(column), pa.scalar(value, whole.schema.field(column).type)))
    return pq.read_table(file, filters=[(column, {"=": "=="}.get(op, op), value)]), want


def by_duckdb(file: str, whole: pa.Table, column: str, op: str, value: object) -> tuple[pa.Table, pa.Table]:
    """Filter by DuckDB: in the file, and in memory."""
    where = f'where "{column}" {op} $1'
    got = duckdb.sql(f"select * from read_parquet('{file}') {where}", params=[value]).to_arrow_table()
    return got, duckdb.sql(f"select * from whole {where}", params=[value]).to_arrow_table()


def by_polars(file: str, whole: pa.Table, column: str, op: str, value: object) -> tuple[pa.Table, pa.Table]:
    """Filter by Polars: in the file, and in memory."""
    c = pl.col(column)
    chosen = {"=": c == value, "<": c < value, ">": c > value, "<=": c <= value, ">=": c >= value}[op]
    return pl.scan_parquet(file).filter(chosen).collect().to_arrow(), pl.from_arrow(whole).filter(chosen).to_arrow()


def identity(t: pa.Table) -> list[tuple]:
    """Name the rows: what a filter may lose or invent."""
    columns = [t.column(c).to_pylist() for c in ("request", "hook", "layer", "seq", "row")]
    return sorted(zip(*columns, strict=True))


def questions(whole: pa.Table) -> Iterator[tuple[str, str, object]]:
    """Yield comparisons of each column with values that it holds; of a large file, of the request alone."""
    large = len(whole) > MANY_ROWS
    for field in whole.schema:
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or large and field.name != "request":
            continue
        values = whole.column(field.name).unique().to_pylist()
        values = [v for v in values if not isinstance(v, float) or not math.isnan(v)]
        for value in values[:: max(1, len(values) // (3 if large else 12))]:
            for op in ["="] if large else COMPARE:
                yield field.name, op, value


def main(files: list[str]) -> int:
    """Ask all questions and say which answers are wrong."""
    asked = wrong = 0
    for file in files:
        whole = pq.read_table(file)
        for column, op, value in questions(whole):
            for reader in (by_pyarrow, by_duckdb, by_polars):
                asked += 1
                got, want = (identity(t) for t in reader(file, whole, column, op, value))
                if got != want:
                    wrong += 1
                    print(f"{reader.__name__}: {file}: {column} {op} {value!r:.60}: {len(got)} rows, not {len(want)}")
    print(f"{asked} questions, {wrong} wrong answers")
    return int(wrong > 0 or asked == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
