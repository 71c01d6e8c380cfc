"""The rows of an experiment as files: CSV always, pictures where matplotlib is installed."""

import csv
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from scripts.laboratory.experiment import Experiment, Row

INCHES: Final = (9.0, 4.8)
DOTS_PER_INCH: Final = 100

FORMATS: Final = ("png", "svg", "pdf")
_NO_DATE: Final = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Metadata of each format that leaves the time out: the same rows give the same file."""

NO_PICTURES: Final = (
    "no pictures: they need matplotlib; scripts/lab installs it where it can, or: pip install vhost-user-balloon[plot]"
)


def can_draw() -> bool:
    """Return whether matplotlib is installed. Only save_drawing imports it."""
    return importlib.util.find_spec("matplotlib") is not None


def save_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV, one column for each key of any of them.

    Raises:
        OSError: the file cannot be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def save_picture(path: Path, experiment: Experiment, rows: Sequence[Row]) -> None:
    """Draw the rows into a file, whose suffix is one of ``FORMATS``.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    save_drawing(path, experiment.name, lambda figure: experiment.draw(figure, rows))


def save_drawing(path: Path, name: str, draw: Callable[[Any], None]) -> None:
    """Have ``draw`` fill a Figure and save it as ``save_picture`` does; ``name`` is that of the picture's parts."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    draw(figure)
    kind = path.suffix.removeprefix(".")
    # SVG names its parts by random numbers unless it is given a salt.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(path, format=kind, dpi=DOTS_PER_INCH, metadata=_NO_DATE[kind])
