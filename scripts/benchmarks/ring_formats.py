"""What the format and the size of a ring cost: the same report over two rings of one daemon, in turns."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Final

from guest.virtqueue.ring_memory import RingOptions
from guest.virtqueue.virtqueue import Buffer
from protocol.units import MIB
from protocol.virtio_ring import QUEUE_SIZE_MAX
from scripts.benchmarks.figures import Bench, Benchmark, Figure, Result, median_uncertainty
from scripts.benchmarks.rig import Daemon, Machine

_RANGE: Final = 4 * MIB
_PER_REPORT: Final = 32
MACHINE_BYTES: Final = _RANGE * _PER_REPORT
"""Memory of a machine that :func:`compare` takes."""
_ORDINARY: Final = 256
_BATCH: Final = 25
"""Reports of one machine before the turn of the other. The speed of a virtual processor drifts within seconds; it is
the same for adjacent batches."""
_WARM_UP: Final = 2

PACKED: Final = Figure(
    name="packed-ring",
    title="kick to used entry of 32 empty ranges in an indirect table, packed ring against split ring, median of pairs",
    unit="of split",
    bar=1.0,
    at_least=False,
)
DIRECT: Final = Figure(
    name="direct-descs",
    title="the same over a split ring in direct descriptors, as Linux 7.2 makes them, against an indirect table",
    unit="of indirect",
    bar=1.3,
    at_least=False,
)
LARGE: Final = Figure(
    name="large-ring",
    title=f"the same over a split ring of {QUEUE_SIZE_MAX} entries against one of {_ORDINARY}",
    unit="of small ring",
    bar=1.0,
    at_least=False,
)


def _batch(machine: Machine, ranges: Sequence[Buffer]) -> float:
    return statistics.median(end - begin for begin, end in (machine.report(ranges) for _ in range(_BATCH)))


def compare(bench: Bench, figure: Figure, machine: Machine, other: Machine) -> Result:
    """Return how long a report of ``machine`` takes against one of ``other``, the median of pairs of batches."""
    ranges = [(number * _RANGE, _RANGE) for number in range(_PER_REPORT)]
    times: list[float] = []
    references: list[float] = []
    rounds = max(bench.scale.round_trips // _BATCH, 1)
    bench.progress(f"{figure.name}, {rounds} pairs of {_BATCH} reports")
    for number in range(_WARM_UP + rounds):
        pair = [(times, machine), (references, other)]
        for results, which in pair if number % 2 else reversed(pair):
            results.append(_batch(which, ranges))
    del times[:_WARM_UP], references[:_WARM_UP]
    ratios = [above / below for above, below in zip(times, references, strict=True)]
    uncertainty = median_uncertainty(ratios)
    return Result(
        figure=figure,
        value=statistics.median(ratios),
        reference=f"give or take {uncertainty:.2g}; medians {statistics.median(times) * 1e6:.0f} us"
        f" and {statistics.median(references) * 1e6:.0f} us",
        uncertainty=uncertainty,
    )


def _compare(bench: Bench, figure: Figure, options: RingOptions, reference: RingOptions) -> Iterator[Result]:
    with (
        Daemon(bench.directory, "--features", "packed=on") as daemon,
        Machine(daemon.socket_path, MACHINE_BYTES, options) as machine,
        Machine(daemon.socket_path, MACHINE_BYTES, reference) as other,
    ):
        yield compare(bench, figure, machine, other)


def _packed(bench: Bench) -> Iterator[Result]:
    yield from _compare(bench, PACKED, RingOptions(packed=True), RingOptions())


def _direct(bench: Bench) -> Iterator[Result]:
    yield from _compare(bench, DIRECT, RingOptions(indirect=False), RingOptions())


def _large(bench: Bench) -> Iterator[Result]:
    yield from _compare(bench, LARGE, RingOptions(size=QUEUE_SIZE_MAX), RingOptions(size=_ORDINARY))


BENCHMARKS: Final = (
    Benchmark(figures=(PACKED,), measure=_packed),
    Benchmark(figures=(DIRECT,), measure=_direct),
    Benchmark(figures=(LARGE,), measure=_large),
)
