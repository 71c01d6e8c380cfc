"""The way of a report with workers against that of a daemon in one process. Both daemons run, and take turns."""

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final

from protocol.units import GIB, MIB
from scripts.benchmarks.figures import Bench, Benchmark, Figure, Result, median_uncertainty
from scripts.benchmarks.rig import Daemon, Machine
from scripts.benchmarks.ring_formats import MACHINE_BYTES, compare
from scripts.benchmarks.throughput import two_at_once

_RANGE: Final = 4 * MIB
_PER_REPORT: Final = 32
_RATE_PART: Final = 2
_RATE_ROUNDS: Final = 4
"""A round discards a part of the memory that other figures take, so many times as often: what disturbs the system for
a while disturbs both daemons then."""

TRIP: Final = Figure(
    name="worker-trip",
    title="kick to used entry of 32 empty ranges with --workers 1, against --workers 0, median of pairs",
    unit="of workers 0",
    bar=1.02,
    at_least=False,
)
RATE: Final = Figure(
    name="worker-rate",
    title="time to discard touched ranges of 4.0 MiB, 32 a report, with --workers 1, against --workers 0, the same",
    unit="of workers 0",
    bar=1.02,
    at_least=False,
)
TWO: Final = Figure(
    name="worker-two-vms",
    title="throughput of two machines reporting touched memory at once with --workers 2, against one",
    unit="times one",
    bar=1.7,
    at_least=True,
)


def _two_daemons(stack: ExitStack, bench: Bench, size: int) -> tuple[Machine, Machine]:
    # A machine with a worker, and one without.
    machines = []
    for workers in (1, 0):
        daemon = stack.enter_context(Daemon(bench.directory / f"workers-{workers}", "--workers", str(workers)))
        machines.append(stack.enter_context(Machine(daemon.socket_path, size)))
    return machines[0], machines[1]


def _trip(bench: Bench) -> Iterator[Result]:
    with ExitStack() as stack:
        yield compare(bench, TRIP, *_two_daemons(stack, bench, MACHINE_BYTES))


def _rate(bench: Bench) -> Iterator[Result]:
    size = max(bench.scale.touched_bytes // _RATE_PART, _RANGE * _PER_REPORT)
    seconds: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        machines = _two_daemons(stack, bench, size)
        rounds = bench.scale.rounds * _RATE_ROUNDS
        for number in range(1 + rounds):
            bench.progress(f"{RATE.name}, round {number} of {rounds}")
            for which in (0, 1) if number % 2 else (1, 0):
                machines[which].touch()
                seconds[which].append(machines[which].report_all(_RANGE, _PER_REPORT))
    with_workers, without = seconds[0][1:], seconds[1][1:]
    ratios = [above / below for above, below in zip(with_workers, without, strict=True)]
    uncertainty = median_uncertainty(ratios)
    rates = [size / GIB / statistics.median(each) for each in (with_workers, without)]
    yield Result(
        figure=RATE,
        value=statistics.median(ratios),
        reference=f"give or take {uncertainty:.2g}; {rates[0]:.2f} GiB/s and {rates[1]:.2f} GiB/s",
        uncertainty=uncertainty,
    )


BENCHMARKS: Final = (
    Benchmark(figures=(TRIP,), measure=_trip),
    Benchmark(figures=(RATE,), measure=_rate),
    Benchmark(figures=(TWO,), measure=partial(two_at_once, TWO, ("--workers", "2"))),
)
