"""All benchmarks, in the order of the table."""

from collections.abc import Iterator, Sequence
from typing import Final

from protocol.errors import UsageError
from scripts.benchmarks import balloon, emulated_guest, idle, latency, memory_manager, ring_formats, throughput
from scripts.benchmarks.figures import Bench, Figure, Result
from scripts.benchmarks.supervision import against_one_process, many_vms, pool, start, takeover

BENCHMARKS: Final = (
    *throughput.BENCHMARKS[:-1],
    *latency.BENCHMARKS,
    *ring_formats.BENCHMARKS,
    *throughput.BENCHMARKS[-1:],
    *idle.BENCHMARKS,
    *emulated_guest.BENCHMARKS,
    *balloon.BENCHMARKS,
    *memory_manager.BENCHMARKS,
    *against_one_process.BENCHMARKS,
    *many_vms.BENCHMARKS,
    *takeover.BENCHMARKS,
    *pool.BENCHMARKS,
    *start.BENCHMARKS,
)
FIGURES: Final = tuple(figure for benchmark in BENCHMARKS for figure in benchmark.figures)


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
