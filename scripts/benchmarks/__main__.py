"""``balloon-bench``, ``scripts/bench``: measures the figures that the project promises, each against its bar."""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

from protocol.errors import UsageError
from protocol.process.command_line import Parser, run_command
from scripts.benchmarks import (
    balloon,
    bare_loop,
    emulated_guest,
    idle,
    latency,
    memory_manager,
    ring_formats,
    table,
    throughput,
)
from scripts.benchmarks.figures import FULL, QUICK, Bench, Figure, Result, Scale
from scripts.benchmarks.process import busy_processors
from scripts.json_output import open_json

PROGRAM: Final = "balloon-bench"
BENCHMARKS: Final = (
    *throughput.BENCHMARKS[:-1],
    *latency.BENCHMARKS,
    *ring_formats.BENCHMARKS,
    *throughput.BENCHMARKS[-1:],
    *idle.BENCHMARKS,
    *emulated_guest.BENCHMARKS,
    *balloon.BENCHMARKS,
    *memory_manager.BENCHMARKS,
)
FIGURES: Final = tuple(figure for benchmark in BENCHMARKS for figure in benchmark.figures)

_LOOK_SECONDS: Final = 0.5
_BUSY: Final = 0.1
"""Seconds to measure what other processes use, and the number of busy processors that is worth a note."""

_EPILOG: Final = """\
example:
  scripts/bench                                       all figures, in about four minutes
  scripts/bench discard-4m round-trip --json -        two figures, as JSON on standard output

It needs about 2 GiB of free memory. It measures real processes: run it on an idle system.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=PROGRAM,
        description="Measures the figures that vhost-user-balloon promises, and compares each with the value that it "
        "must reach.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "names",
        metavar="NAME",
        nargs="*",
        help="a figure to measure, for example discard-4m (default: all, see --list)",
    )
    parser.add_argument("--list", action="store_true", help="list the figures and what they promise, and exit")
    parser.add_argument("--json", metavar="PATH", help="also write the results as JSON to PATH, - for standard output")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="measure very little: it shows that everything runs, but the values have no meaning",
    )
    return parser


def choose(names: Sequence[str]) -> tuple[Figure, ...]:
    """Return the figures with these names in the order of the table, all of them for no name.

    Raises:
        UsageError: a name is unknown.
    """
    known = {figure.name for figure in FIGURES}
    for name in names:
        if name not in known:
            raise UsageError(f"unknown figure {name!r}; known are {', '.join(figure.name for figure in FIGURES)}")
    return tuple(figure for figure in FIGURES if not names or figure.name in names)


def measure(figures: Sequence[Figure], bench: Bench) -> Iterator[Result]:
    """Measure ``figures`` and yield each result at once.

    Raises:
        BalloonError: something could not be measured.
    """
    for benchmark in BENCHMARKS:
        if any(figure in figures for figure in benchmark.figures):
            for result in benchmark.measure(bench):
                if result.figure in figures:
                    yield result


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


def _run(arguments: argparse.Namespace) -> int:
    figures = choose(arguments.names)
    out = sys.stderr if arguments.json == "-" else sys.stdout
    if arguments.list:
        print(table.listing(figures))
        return 0
    with open_json(arguments.json) as json_stream:
        _say_system(out)
        print(table.header(), file=out, flush=True)
        judged = not arguments.quick
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; return the exit status: 0 if all was measured, whether or not each bar is met, 1 for a
    failure, 2 for a usage error."""
    arguments = make_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
