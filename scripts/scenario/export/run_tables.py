"""The results of a run, read back from their directory as tables with types.

``samples`` and ``ledger`` have the columns of their files. ``events`` has ``t``, ``event``, ``vm`` and ``fields``;
``decisions`` has ``t``, ``policy``, ``reason``, ``problem``, ``actions`` and ``inputs``. ``fields``, ``actions`` and
``inputs`` are JSON values. Times are seconds since the run began, sizes bytes.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocol.errors import BalloonError
from scripts.scenario.results import (
    DECISIONS,
    EVENTS,
    LEDGER,
    LEDGER_COLUMNS,
    SAMPLE_COLUMNS,
    SAMPLES,
    SUMMARY,
)

EVENT_COLUMNS: Final = ("t", "event", "vm", "fields")
DECISION_COLUMNS: Final = ("t", "policy", "reason", "problem", "actions", "inputs")
JSON_COLUMNS: Final = frozenset({"fields", "actions", "inputs"})
"""Their cells are JSON values; a format without such has their text."""

_TEXTS: Final = frozenset({"vm", "state", "event", "policy", "reason", "problem"})
_FLOATS: Final = frozenset({"t", "stall_seconds", "host_pressure"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTable:
    """Rows in order of time, each with the value of every column; None is what is not known."""

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResults:
    """A run as its directory has it."""

    summary: Mapping[str, Any]
    samples: RunTable
    ledger: RunTable
    events: RunTable
    decisions: RunTable

    @property
    def tables(self) -> tuple[RunTable, ...]:
        """All tables."""
        return self.samples, self.ledger, self.events, self.decisions


def kind_of(column: str) -> type:
    """Return the type of a column's values: str, float or int. JSON values count as str."""
    if column in _TEXTS or column in JSON_COLUMNS:
        return str
    return float if column in _FLOATS else int


def read_results(directory: Path) -> RunResults:
    """Read what ``balloon-lab run --out`` has written.

    Raises:
        BalloonError: it is not such a directory, or a file is damaged; the line names the file.
    """
    try:
        summary = json.loads((directory / SUMMARY).read_text(encoding="utf-8") or "null")
    except (OSError, ValueError) as error:
        raise BalloonError(f"{directory}: not the results of a run: {SUMMARY}: {_reason(error)}") from error
    if not isinstance(summary, dict) or "scenario" not in summary:
        raise BalloonError(f"{directory}: not the results of a run: {SUMMARY} is not complete")
    events = [_event(line) for line in _lines(directory / EVENTS)]
    decisions = [tuple(line.get(column) for column in DECISION_COLUMNS) for line in _lines(directory / DECISIONS)]
    return RunResults(
        summary=summary,
        samples=_table(directory / SAMPLES, SAMPLE_COLUMNS),
        ledger=_table(directory / LEDGER, LEDGER_COLUMNS),
        events=RunTable(name="events", columns=EVENT_COLUMNS, rows=events),
        decisions=RunTable(name="decisions", columns=DECISION_COLUMNS, rows=decisions),
    )


def _event(line: Mapping[str, Any]) -> tuple[Any, ...]:
    fields = {key: value for key, value in line.items() if key not in EVENT_COLUMNS}
    return line.get("t"), line.get("event"), line.get("vm"), fields


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                try:
                    line = json.loads(text)
                except ValueError as error:
                    raise BalloonError(f"{path}: line {number}: not JSON: {error}") from error
                if not isinstance(line, dict) or not isinstance(line.get("t"), int | float):
                    raise BalloonError(f"{path}: line {number}: not an object with a time t")
                yield line
    except (OSError, UnicodeDecodeError) as error:
        raise BalloonError(f"{path}: {_reason(error)}") from error


def _table(path: Path, columns: tuple[str, ...]) -> RunTable:
    kinds = [kind_of(column) for column in columns]
    rows = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != columns:
                raise ValueError(f"line 1: the columns are not {', '.join(columns)}")
            for row in reader:
                try:
                    rows.append(
                        tuple(None if cell == "" else kind(cell) for kind, cell in zip(kinds, row, strict=True))
                    )
                except ValueError as error:
                    raise ValueError(f"line {reader.line_num}: {error}") from error
    except (OSError, ValueError) as error:
        raise BalloonError(f"{path}: {_reason(error)}") from error
    return RunTable(name=path.stem, columns=columns, rows=rows)


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
