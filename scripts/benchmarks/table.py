"""Results as a table and as JSON."""

import json
from collections.abc import Iterable, Sequence
from typing import Final

from scripts.benchmarks.figures import Figure, Result

_COLUMNS: Final = "{:<16}  {:>8} {:<12}  {:<7}  {:<3}  {}"


def header() -> str:
    """Return the first line of the table."""
    return _COLUMNS.format("figure", "measured", "unit", "bar", "met", "reference").rstrip()


def row(result: Result, *, judged: bool = True) -> str:
    """Return one line of the table. Values that are not ``judged`` say nothing about the bar."""
    figure = result.figure
    met = ("yes" if result.met else "NO") if judged else "-"
    return _COLUMNS.format(
        figure.name, format_value(result.value), figure.unit, figure.bar_text, met, result.reference
    ).rstrip()


def format_value(value: float) -> str:
    """Return a value with three or more significant digits, without an exponent."""
    if value == int(value):
        return str(int(value))
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def summary(results: Sequence[Result], *, judged: bool = True) -> str:
    """Return the last line: how many bars are met, and which are not; or that none was ``judged``."""
    if not judged:
        return f"{len(results)} figures ran. Nothing was judged: --quick measures too little for that"
    missed = [result.figure.name for result in results if not result.met]
    text = f"{len(results) - len(missed)} of {len(results)} bars met"
    return f"{text}; not met: {', '.join(missed)}" if missed else text


def listing(figures: Iterable[Figure]) -> str:
    """Return a line for each figure: its name and what it promises."""
    return "\n".join(f"{figure.name:<16}  {figure.title} ({figure.bar_text} {figure.unit})" for figure in figures)


def as_json(results: Iterable[Result], *, judged: bool = True) -> str:
    """Return the results as one JSON object, ``{"results": [...]}``. ``met`` is null for what was not ``judged``."""
    rows = [
        {
            "name": result.figure.name,
            "value": result.value,
            "uncertainty": result.uncertainty,
            "unit": result.figure.unit,
            "reference": result.reference,
            "bar": result.figure.bar_text,
            "met": result.met if judged else None,
        }
        for result in results
    ]
    return json.dumps({"results": rows}, indent=2)
