"""How fast reported memory is discarded, compared with a bare loop of the system call."""

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final

from guest.ram import GuestRam
from protocol.memory import PAGE_SIZE
from protocol.units import GIB, KIB, MIB, format_size
from scripts.benchmarks.bare_loop import BareLoop
from scripts.benchmarks.figures import Bench, Benchmark, Figure, Result, median_ratio
from scripts.benchmarks.rig import Daemon, Machine
from scripts.benchmarks.second_machine import SecondMachine

_RATE: Final = "of bare rate"


def _figure(range_bytes: int, per_report: int, name: str, bar: float, stride: int) -> Figure:
    layout = "that do not touch" if stride > 1 else "side by side"
    ranges = f"touched ranges of {format_size(range_bytes)} {layout}, {per_report} a report"
    title = f"discard throughput through the ring, {ranges}"
    return Figure(name=name, title=title, unit=_RATE, bar=bar, at_least=True)


def _gigabytes(size: int, seconds: float) -> str:
    return f"{size / GIB / seconds:.2f} GiB/s"


def _against_bare(figure: Figure, range_bytes: int, per_report: int, stride: int, bench: Bench) -> Iterator[Result]:
    size = bench.scale.touched_bytes
    if size % (range_bytes * per_report):
        size = range_bytes * per_report
    through_ring: list[float] = []
    bare: list[float] = []
    with (
        Daemon(bench.directory) as daemon,
        Machine(daemon.socket_path, size) as machine,
        BareLoop(bench.bare_loop, machine.ram.fd) as loop,
    ):

        def ring_once() -> None:
            machine.touch()
            through_ring.append(machine.report_all(range_bytes, per_report, stride))

        def bare_once() -> None:
            machine.touch()
            bare.append(loop.punch(0, range_bytes, size // range_bytes, stride))

        for number in range(1 + bench.scale.rounds):
            bench.progress(f"{figure.name}, round {number} of {bench.scale.rounds}")
            for once in (ring_once, bare_once) if number % 2 else (bare_once, ring_once):
                once()
    rates = [_gigabytes(size, statistics.median(seconds[1:])) for seconds in (through_ring, bare)]
    yield Result(
        figure=figure,
        value=median_ratio(bare[1:], through_ring[1:]),
        reference=f"bare fallocate loop ({bench.bare_language}) {rates[1]}, ring {rates[0]}",
    )


def _benchmark(range_bytes: int, per_report: int, name: str, bar: float, stride: int = 1) -> Benchmark:
    figure = _figure(range_bytes, per_report, name, bar, stride)
    return Benchmark(figures=(figure,), measure=partial(_against_bare, figure, range_bytes, per_report, stride))


TWO_MACHINES: Final = Figure(
    name="two-machines",
    title="throughput of two machines reporting touched memory at once, against one",
    unit="times one",
    bar=1.6,
    at_least=True,
)
_TWO_RANGE: Final = 4 * MIB
_TWO_PER_REPORT: Final = 32


def two_at_once(figure: Figure, options: tuple[str, ...], bench: Bench) -> Iterator[Result]:
    """Measure ``figure``: how much more two machines report at once than one, to a daemon with these ``options``."""
    size = max(bench.scale.touched_bytes, _TWO_RANGE * _TWO_PER_REPORT)
    alone: list[float] = []
    together: list[float] = []
    with Daemon(bench.directory, *options) as daemon, ExitStack() as stack:
        machines = [
            stack.enter_context(SecondMachine(daemon.socket_path, size, _TWO_RANGE, _TWO_PER_REPORT)) for _ in range(2)
        ]
        for number in range(1 + bench.scale.rounds):
            bench.progress(f"{figure.name}, round {number} of {bench.scale.rounds}")
            for count, seconds in ((1, alone), (2, together)):
                chosen = machines[:count] if number % 2 else machines[::-1][:count]
                seconds.append(_time_together(chosen))
    bare_alone, bare_together = _two_bare_loops(figure, bench, size)
    yield Result(
        figure=figure,
        value=2 * median_ratio(alone[1:], together[1:]),
        reference=f"two bare fallocate loops ({bench.bare_language}) {2 * median_ratio(bare_alone, bare_together):.2f}"
        f" times one; one machine {_gigabytes(size, statistics.median(alone[1:]))},"
        f" two {_gigabytes(2 * size, statistics.median(together[1:]))}",
    )


def _time_together(machines: list[SecondMachine]) -> float:
    # From the beginning of the first report of either machine to the end of the last.
    for machine in machines:
        machine.touch()
    for machine in machines:
        machine.begin()
    spans = [span for machine in machines for span in machine.end()]
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


def _two_bare_loops(figure: Figure, bench: Bench, size: int) -> tuple[list[float], list[float]]:
    # The same without a daemon: the most that this system's memory management allows.
    alone: list[float] = []
    together: list[float] = []
    with ExitStack() as stack:
        rams = [GuestRam(size) for _ in range(2)]
        for ram in rams:
            stack.callback(ram.close)
        loops = [stack.enter_context(BareLoop(bench.bare_loop, ram.fd)) for ram in rams]
        for number in range(1 + bench.scale.rounds):
            bench.progress(f"{figure.name}, reference {number} of {bench.scale.rounds}")
            for ram in rams:
                ram.fill(0, size // PAGE_SIZE, 1)
            for loop in loops:
                loop.begin(0, _TWO_RANGE, size // _TWO_RANGE)
            together.append(max(loop.end() for loop in loops))
            rams[0].fill(0, size // PAGE_SIZE, 1)
            alone.append(loops[0].punch(0, _TWO_RANGE, size // _TWO_RANGE))
    return alone[1:], together[1:]


BENCHMARKS: Final = (
    _benchmark(2 * MIB, 32, "discard-2m", 0.95),
    _benchmark(4 * MIB, 32, "discard-4m", 0.95),
    _benchmark(64 * KIB, 128, "discard-64k", 0.85),
    _benchmark(64 * KIB, 128, "discard-apart", 0.8, stride=4),
    Benchmark(figures=(TWO_MACHINES,), measure=partial(two_at_once, TWO_MACHINES, ())),
)
