"""An experiment and its outcome: tables for people, rows for programs, a picture of the rows."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
"""One line of data: numbers and names by column, the unit in the column's name."""

Progress = Callable[[str], None]
"""Called with a line on what is being computed."""


def least(column: str) -> str:
    """Return the name of the column with the least value of ``column``."""
    return f"{column}_least"


def most(column: str) -> str:
    """Return the name of the column with the greatest value of ``column``."""
    return f"{column}_most"


def summarise(runs: Sequence[Row], columns: Sequence[str]) -> Row:
    """Return one row for runs of the same thing: the median of each of ``columns``, with its least and most.

    The other columns are those of the first run; ``runs`` is their number.
    """
    row = {**runs[0], "runs": len(runs)}
    for column in columns:
        values = [run[column] for run in runs]
        row |= {column: statistics.median(values), least(column): min(values), most(column): max(values)}
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells as text. The first column is left aligned, the others right aligned."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """Return the table with its title, without a line break at the end."""
        lines = (self.header, *self.rows)
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        text = [self.title]
        for line in lines:
            first = line[0].ljust(widths[0])
            others = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            text.append("  " + "  ".join([first, *others]).rstrip())
        return "\n".join(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What an experiment found: the tables, what a reader has to know about them, and the rows they were made of."""

    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """``run(quick, progress)`` computes; ``draw(figure, rows)`` fills a matplotlib Figure from the rows alone."""

    name: str
    title: str
    run: Callable[[bool, Progress], Outcome]
    draw: Callable[[Any, Sequence[Row]], None]
