"""The what-if table: the variants that ``compare`` has played, or this run beside others."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from protocol.errors import BalloonError, UsageError
from scripts.scenario.compare.spread import MEASURES, spread
from scripts.scenario.report.run_files import COMPARE, RunFiles, compare_rows
from scripts.scenario.score import Score

_SAME_SCALE: Final = 1.0


class Row(NamedTuple):
    """A variant with its scores, one for each seed. ``elsewhere`` says how what it played differs from the run that is
    reported, "" if it does not."""

    variant: str
    scores: list[Score]
    elsewhere: str = ""


Rows = list[Row]


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
    scenario: Mapping[str, Any] = files.summary["scenario"]
    for path in paths:
        table = path / COMPARE if path.is_dir() else path
        if table.name == COMPARE and table.exists():
            rows += compared(table, scenario)
        else:
            if not rows:
                rows.append(_run_row(files, "this run"))
            other = RunFiles(path)
            rows.append(_run_row(other, path.name, elsewhere(other.summary["scenario"], scenario)))
    return as_table(rows)


def elsewhere(played: Mapping[str, Any], scenario: Mapping[str, Any]) -> str:
    """Return how ``played``, with ``name``, ``duration`` and perhaps ``scale``, differs from the scenario of a run; ""
    if it does not. What is not known does not differ."""
    found = []
    if (name := played.get("name")) and name != scenario.get("name"):
        found.append(f"scenario {name}")
    if (duration := played.get("duration")) and float(duration) != float(scenario.get("duration", duration)):
        found.append(f"{float(duration):g} s")
    if (scale := played.get("scale")) and float(scale) != _SAME_SCALE:
        found.append(f"scale {float(scale):g}")
    return ", ".join(found)


def compared(path: Path, scenario: Mapping[str, Any] | None = None) -> Rows:
    """Return the variants of a ``compare.csv``, each with the same seeds in the same order. ``scenario`` is that of the
    run that is reported.

    Raises:
        BalloonError: it is broken.
    """
    scores: dict[str, dict[str, Score]] = {}
    different = ""
    for row in compare_rows(path):
        if scenario is not None:
            different = _elsewhere_row(path, row, scenario)
        scores.setdefault(row["variant"], {})[row["seed"]] = _score(path, row)
    seeds = list(next(iter(scores.values()), {}))
    if any(list(of_variant) != seeds for of_variant in scores.values()):
        raise BalloonError(f"{path}: the variants do not have the same seeds")
    return [Row(variant, list(of_variant.values()), different) for variant, of_variant in scores.items()]


def as_table(rows: Rows) -> dict[str, Any] | None:
    """Return columns, and for each variant mean, deviation and whether it differs from the first beyond the spread.

    A variant that played something else than the first one is not compared with it.
    """
    if not rows:
        return None
    first = rows[0]
    lines = []
    for row in rows:
        scores = row.scores
        is_like = len(first.scores) == len(scores) and first.elsewhere == row.elsewhere
        found = [spread(scores, first.scores if is_like else scores, name) for name in MEASURES]
        cells = [[round(one.mean, 4), round(one.deviation, 4), one.is_different] for one in found]
        variant = f"{row.variant} [{row.elsewhere}]" if row.elsewhere else row.variant
        lines.append({"variant": variant, "seeds": len(scores), "cells": cells})
    return {"columns": list(MEASURES.values()), "rows": lines}


def _elsewhere_row(path: Path, row: Mapping[str, str], scenario: Mapping[str, Any]) -> str:
    played = {"name": row.get("scenario"), "duration": row.get("duration"), "scale": row.get("scale")}
    try:
        return elsewhere(played, scenario)
    except ValueError:
        raise BalloonError(f"{path}: duration or scale of {row['variant']!r} is no number") from None


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


def _run_row(files: RunFiles, name: str, different: str = "") -> Row:
    try:
        score = _made(files.summary["score"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{files.directory}: the score in the summary is broken") from None
    return Row(f"{name} ({files.summary['policy']}, seed {files.summary['seed']})", [score], different)
