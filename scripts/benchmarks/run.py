"""A run of the benchmarks: measures, prints the table as it comes, and writes the results."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TextIO

from scripts.benchmarks import bare_loop, table
from scripts.benchmarks.figures import FULL, QUICK, Bench, Figure, Result, Scale
from scripts.benchmarks.process import busy_processors
from scripts.benchmarks.registry import choose, measure
from scripts.json_output import open_json

_LOOK_SECONDS: Final = 0.5
_BUSY: Final = 0.1
"""Seconds to measure what other processes use, and the number of busy processors that is worth a note."""


class _Progress:
    # One line that says what is being measured. It is written to terminals only, and results replace it.
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = stream.isatty()

    def show(self, text: str) -> None:
        if self._shown:
            self._stream.write(f"\r\x1b[K{text}" if text else "\r\x1b[K")
            self._stream.flush()


def _say_system(out: TextIO) -> None:
    # The system that the figures are of. Two machines at once need two idle processors.
    busy = busy_processors(_LOOK_SECONDS)
    processors = len(os.sched_getaffinity(0))
    print(f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {processors} processors", file=out)
    if busy > _BUSY:
        print(f"note: other processes keep {busy:.1f} processors busy, which makes the figures worse", file=out)


def run_benchmarks(names: Sequence[str], *, listing: bool, quick: bool, json_path: str | None) -> int:
    """Measure the figures with these names, all for no name, and print the table; with ``listing`` only list them.

    ``quick`` measures very little and judges nothing. ``json_path`` is where the results go too. Returns the exit
    status.

    Raises:
        UsageError: a name is unknown.
        BalloonError: something could not be measured.
    """
    figures = choose(names)
    out = sys.stderr if json_path == "-" else sys.stdout
    if listing:
        print(table.listing(figures))
        return 0
    with open_json(json_path) as json_stream:
        _say_system(out)
        print(table.header(), file=out, flush=True)
        judged = not quick
        results = _measure_all(figures, FULL if judged else QUICK, out)
        print(table.summary(results, judged=judged), file=out)
        if json_stream is not None:
            print(table.as_json(results, judged=judged), file=json_stream, flush=True)
    return 0


def _measure_all(figures: Sequence[Figure], scale: Scale, out: TextIO) -> list[Result]:
    progress = _Progress(sys.stderr)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="balloon-bench-") as name:
        directory = Path(name)
        command, language = bare_loop.prepare(directory)
        bench = Bench(
            scale=scale,
            directory=directory,
            bare_loop=command,
            bare_language=language,
            progress=progress.show,
        )
        try:
            for result in measure(figures, bench):
                progress.show("")
                print(table.row(result, judged=scale is FULL), file=out, flush=True)
                results.append(result)
        finally:
            progress.show("")
    return results
