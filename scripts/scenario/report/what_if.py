"""The what-if table: the variants that ``compare`` has played, or this run beside others."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from protocol.errors import BalloonError, UsageError
from scripts.scenario.compare.spread import MEASURES, spread
from scripts.scenario.report.run_files import COMPARE, RunFiles, compare_rows
from scripts.scenario.score import Score

Rows = list[tuple[str, list[Score]]]
"""Each variant with its scores, one for each seed."""


def what_if(files: RunFiles, others: Iterable[Path]) -> dict[str, Any] | None:
    """Return the table as JSON values, None where there is nothing to compare with.

    ``others`` are directories of ``compare``, or of other runs. Without any, the run's own directory is looked at.

    Raises:
        BalloonError: results cannot be read.
    """
    paths = list(others) or ([files.directory] if (files.directory / COMPARE).exists() else [])
    if not paths:
        return None
    rows: Rows = []
    for path in paths:
        table = path / COMPARE if path.is_dir() else path
        if table.name == COMPARE and table.exists():
            rows += compared(table)
        else:
            if not rows:
                rows.append(_run_row(files, "this run"))
            rows.append(_run_row(RunFiles(path), path.name))
    return as_table(rows)


def compared(path: Path) -> Rows:
    """Return the variants of a ``compare.csv``, each with the same seeds in the same order.

    Raises:
        BalloonError: it is broken.
    """
    scores: dict[str, dict[str, Score]] = {}
    for row in compare_rows(path):
        scores.setdefault(row["variant"], {})[row["seed"]] = _score(path, row)
    seeds = list(next(iter(scores.values()), {}))
    if any(list(of_variant) != seeds for of_variant in scores.values()):
        raise BalloonError(f"{path}: the variants do not have the same seeds")
    return [(variant, list(of_variant.values())) for variant, of_variant in scores.items()]


def as_table(rows: Rows) -> dict[str, Any] | None:
    """Return columns, and for each variant mean, deviation and whether it differs from the first beyond the spread."""
    if not rows:
        return None
    first = rows[0][1]
    lines = []
    for variant, scores in rows:
        found = [spread(scores, first if len(first) == len(scores) else scores, name) for name in MEASURES]
        cells = [[round(one.mean, 4), round(one.deviation, 4), one.is_different] for one in found]
        lines.append({"variant": variant, "seeds": len(scores), "cells": cells})
    return {"columns": list(MEASURES.values()), "rows": lines}


def _score(path: Path, row: Mapping[str, str]) -> Score:
    try:
        return _made(row)
    except (KeyError, TypeError, ValueError):
        raise BalloonError(f"{path}: the score of {row['variant']!r}, seed {row['seed']}, is broken") from None


def _made(values: Mapping[str, Any]) -> Score:
    # A dataclass does not convert, and a table has texts.
    numbers: dict[str, Any] = {}
    for one in fields(Score):
        if one.default is None and values.get(one.name) in (None, ""):
            numbers[one.name] = None  # unknown
            continue
        number = float(values[one.name])
        numbers[one.name] = int(number) if one.type is int else number
    return Score(**numbers)


def _run_row(files: RunFiles, name: str) -> tuple[str, list[Score]]:
    try:
        score = _made(files.summary["score"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{files.directory}: the score in the summary is broken") from None
    return f"{name} ({files.summary['policy']}, seed {files.summary['seed']})", [score]
