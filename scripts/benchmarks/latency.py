"""How long a driver waits for a report of memory that is not resident."""

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Final

from protocol.units import MIB
from scripts.benchmarks.bare_loop import BareLoop
from scripts.benchmarks.figures import Bench, Benchmark, BenchmarkError, Figure, Result, percentile
from scripts.benchmarks.rig import Daemon, Machine
from scripts.benchmarks.second_machine import SecondMachine, Span

_RANGE: Final = 4 * MIB
_PER_REPORT: Final = 32
_WARM_UP: Final = 50
"""Round trips before the measured ones."""

ROUND_TRIP: Final = Figure(
    name="round-trip",
    title="kick to used entry, 32 empty ranges of 4.0 MiB in an indirect table, median",
    unit="us",
    bar=250,
    at_least=False,
)
ROUND_TRIP_TAIL: Final = Figure(
    name="trip-99",
    title="the same, 99th percentile, with an event file",
    unit="us",
    bar=500,
    at_least=False,
)
INTERFERENCE: Final = Figure(
    name="interference",
    title="kick to used entry of an empty report while another machine's 128 MiB are being discarded, 99th percentile",
    unit="ms",
    bar=2,
    at_least=False,
)


def _round_trip(bench: Bench) -> Iterator[Result]:
    trips, bare = _trips(bench, ROUND_TRIP)
    yield Result(
        figure=ROUND_TRIP,
        value=statistics.median(trips) * 1e6,
        reference=f"the bare {_PER_REPORT} calls ({bench.bare_language}) {statistics.median(bare) * 1e6:.0f} us;"
        f" 99th percentile of the round trip {percentile(trips, 99) * 1e6:.0f} us",
    )


def _round_trip_tail(bench: Bench) -> Iterator[Result]:
    trips, bare = _trips(bench, ROUND_TRIP_TAIL, "--events", str(bench.directory / "events"))
    yield Result(
        figure=ROUND_TRIP_TAIL,
        value=percentile(trips, 99) * 1e6,
        reference=f"of the bare {_PER_REPORT} calls ({bench.bare_language}) {percentile(bare, 99) * 1e6:.0f} us;"
        f" median of the round trip {statistics.median(trips) * 1e6:.0f} us",
    )


def _trips(bench: Bench, figure: Figure, *options: str) -> tuple[list[float], list[float]]:
    # Seconds of each round trip, and of each run of the bare calls.
    count = bench.scale.round_trips
    with (
        Daemon(bench.directory, *options) as daemon,
        Machine(daemon.socket_path, _RANGE * _PER_REPORT) as machine,
        BareLoop(bench.bare_loop, machine.ram.fd) as loop,
    ):
        bench.progress(f"{figure.name}, {count} samples")
        ranges = [(number * _RANGE, _RANGE) for number in range(_PER_REPORT)]
        trips = [end - begin for begin, end in (machine.report(ranges) for _ in range(_WARM_UP + count))][_WARM_UP:]
        return trips, [loop.punch(0, _RANGE, _PER_REPORT) for _ in range(count)]


_BREATH: Final = 0.0002
"""Seconds between two samples: the idle daemon goes to sleep in between."""
_BURSTS_MAX: Final = 60


def _sample(machine: Machine, number: int) -> Span:
    time.sleep(_BREATH)
    return machine.report([(number % _PER_REPORT * _RANGE, _RANGE)])


def within(samples: Sequence[Span], busy: Sequence[Span]) -> list[float]:
    """Return the lengths of the samples that lie wholly inside one of the ``busy`` spans. Both are ascending."""
    lengths: list[float] = []
    spans = iter(busy)
    span = next(spans, None)
    for begin, end in samples:
        while span is not None and span[1] < begin:
            span = next(spans, None)
        if span is not None and span[0] <= begin and end <= span[1]:
            lengths.append(end - begin)
    return lengths


def _interference(bench: Bench) -> Iterator[Result]:
    wanted = bench.scale.interference_samples
    lengths: list[float] = []
    with (
        Daemon(bench.directory) as daemon,
        Machine(daemon.socket_path, _RANGE * _PER_REPORT) as machine,
        SecondMachine(daemon.socket_path, bench.scale.interference_bytes, _RANGE, _PER_REPORT) as other,
    ):
        alone = [end - begin for begin, end in (_sample(machine, number) for number in range(max(wanted // 4, 1)))]
        for _ in range(_BURSTS_MAX):
            bench.progress(f"{INTERFERENCE.name}, {len(lengths)} of {wanted} samples")
            other.touch()
            other.begin()
            samples: list[Span] = []
            while other.busy:
                samples.append(_sample(machine, len(samples)))
            lengths += within(samples, other.end())
            if len(lengths) >= wanted:
                break
        else:
            raise BenchmarkError(f"only {len(lengths)} of {wanted} reports were served while others were discarded")
    yield Result(
        figure=INTERFERENCE,
        value=percentile(lengths, 99) * 1e3,
        reference=f"undisturbed {percentile(alone, 99) * 1e3:.2f} ms; medians {statistics.median(lengths) * 1e3:.2f}"
        f" and {statistics.median(alone) * 1e3:.2f} ms",
    )


BENCHMARKS: Final = (
    Benchmark(figures=(ROUND_TRIP,), measure=_round_trip),
    Benchmark(figures=(ROUND_TRIP_TAIL,), measure=_round_trip_tail),
    Benchmark(figures=(INTERFERENCE,), measure=_interference),
)
