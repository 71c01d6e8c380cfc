"""The rows of an experiment as files: CSV always, PNG where matplotlib is installed."""

import csv
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.laboratory.experiment import Experiment, Row

INCHES: Final = (9.0, 4.8)
DOTS_PER_INCH: Final = 100

NO_PICTURES: Final = (
    "no pictures: they need matplotlib; scripts/lab installs it where it can, or: pip install vhost-user-balloon[plot]"
)


def can_draw() -> bool:
    """Return whether matplotlib is installed. Only save_picture imports it."""
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
    """Draw the rows into a PNG.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    experiment.draw(figure, rows)
    figure.savefig(path, dpi=DOTS_PER_INCH)
