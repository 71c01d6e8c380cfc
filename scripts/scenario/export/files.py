"""The tables of a run as files of a format."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from protocol.errors import UsageError
from scripts.scenario.export.perfetto import trace
from scripts.scenario.export.run_tables import JSON_COLUMNS, RunResults, RunTable, kind_of

JSON_FILE: Final = "run.json"
TRACE_FILE: Final = "trace.json"

_NO_PYARROW: Final = "--to parquet needs pyarrow (extra `parquet`): pip install 'pyarrow>=18'"


def write_csv(results: RunResults, directory: Path) -> list[Path]:
    """Write a file for each table; JSON values are their text. Raises OSError."""
    written = []
    for table in results.tables:
        path = directory / f"{table.name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(table.columns)
            writer.writerows(_flat(table))
        written.append(path)
    return written


def write_json(results: RunResults, directory: Path) -> list[Path]:
    """Write one object: the summary, and each table as a list of objects. Raises OSError."""
    tables = {
        table.name: [dict(zip(table.columns, row, strict=True)) for row in table.rows] for table in results.tables
    }
    return [_dump(directory / JSON_FILE, {"summary": results.summary, **tables})]


def write_trace(results: RunResults, directory: Path) -> list[Path]:
    """Write the trace for Perfetto. Raises OSError."""
    return [_dump(directory / TRACE_FILE, trace(results))]


def write_parquet(results: RunResults, directory: Path) -> list[Path]:
    """Write a file for each table; JSON values are their text.

    Raises:
        UsageError: pyarrow is not installed.
        OSError: a file cannot be written.
    """
    pyarrow, parquet = _pyarrow()
    types = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64()}
    written = []
    for table in results.tables:
        schema = pyarrow.schema([(column, types[kind_of(column)]) for column in table.columns])
        columns = [list(cells) for cells in zip(*_flat(table), strict=True)] or [[] for _ in table.columns]
        path = directory / f"{table.name}.parquet"
        parquet.write_table(pyarrow.table(columns, schema=schema), path)
        written.append(path)
    return written


FORMATS: Final[Mapping[str, Callable[[RunResults, Path], list[Path]]]] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "json": write_json,
    "perfetto": write_trace,
}
"""Format: what writes it into a directory, and returns the files."""


def check_format(name: str) -> None:
    """Raise :class:`UsageError` for a format that cannot be written here."""
    if name == "parquet":
        _pyarrow()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(_NO_PYARROW) from None
    return pyarrow, parquet


def _flat(table: RunTable) -> list[tuple[Any, ...]]:
    if JSON_COLUMNS.isdisjoint(table.columns):
        return table.rows
    return [
        tuple(
            json.dumps(cell) if column in JSON_COLUMNS else cell
            for column, cell in zip(table.columns, row, strict=True)
        )
        for row in table.rows
    ]


def _dump(path: Path, value: Any) -> Path:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.write("\n")
    return path
