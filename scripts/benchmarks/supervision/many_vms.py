"""How many empty reports of many machines a daemon serves in a second, with workers and without.

The ranges were discarded before, so that the kernel has little to do and the daemon's own work counts. The drivers of
all machines are one thread of a program in C, each with one report under way (:file:`empty_reports.c`): on a system
with two processors it takes a few per cent of one from the daemon, and the same from either daemon. So the figure says
how much better two interpreters use two processors than one does, which lets go of its lock in system calls only. One
process has connected all machines, so a daemon in one process has four threads for them and not four for each.
"""

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

from host.peers.fd_limit import raise_fd_limit
from protocol.units import MIB
from scripts.benchmarks.bare_loop import compile_program
from scripts.benchmarks.figures import Bench, Benchmark, BenchmarkError, Figure, Result, median_ratio
from scripts.benchmarks.process import end_process
from scripts.benchmarks.rig import Daemon, Machine

_RANGE: Final = 4 * MIB
_PER_REPORT: Final = 32
_SOURCE: Final = Path(__file__).with_name("empty_reports.c")

MANY: Final = Figure(
    name="worker-many-vms",
    title="empty reports of 32 ranges a second from 64 machines with --workers 2, against --workers 0, median of pairs",
    unit="of workers 0",
    bar=1.6,
    at_least=True,
)


class _Drivers:
    """The drivers of ``machines``, which have reported once."""

    def __init__(self, program: str, machines: list[Machine]) -> None:
        rings = [machine.reporting_ring for machine in machines]
        self._process = subprocess.Popen(
            [program, *(str(number) for ring in rings for number in ring)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[fd for ring in rings for fd in ring.fds],
            text=True,
        )

    def reports_per_second(self, seconds: float) -> float:
        """Let them report for so long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{round(seconds * 1000)}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("the drivers have died: a report was not served")
        reports, nanoseconds = map(int, line.split())
        return reports / nanoseconds * 1e9

    def __enter__(self) -> "_Drivers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_process(self._process)


def _many(bench: Bench) -> Iterator[Result]:
    raise_fd_limit()
    program = compile_program(_SOURCE, bench.directory)
    if program is None:
        note = f"note: {MANY.name} is not measured without a C compiler (cc): drivers in Python would take too much"
        print(note, file=sys.stderr)
        return
    count = bench.scale.many_machines
    ranges = [(number * _RANGE, _RANGE) for number in range(_PER_REPORT)]
    rates: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        drivers = []
        for workers in (2, 0):
            daemon = stack.enter_context(Daemon(bench.directory / f"many-{workers}", "--workers", str(workers)))
            machines = []
            for number in range(count):
                bench.progress(f"{MANY.name}, machine {number} of {count}, --workers {workers}")
                machines.append(stack.enter_context(Machine(daemon.socket_path, _RANGE * _PER_REPORT)))
                machines[-1].report(ranges)
            drivers.append(stack.enter_context(_Drivers(program, machines)))
        for number in range(1 + bench.scale.rounds):
            bench.progress(f"{MANY.name}, round {number} of {bench.scale.rounds}")
            for which in (0, 1) if number % 2 else (1, 0):
                rates[which].append(drivers[which].reports_per_second(bench.scale.many_seconds))
    yield Result(
        figure=MANY,
        value=median_ratio(rates[0][1:], rates[1][1:]),
        reference=f"{count} machines, {statistics.median(rates[0][1:]):.0f} and"
        f" {statistics.median(rates[1][1:]):.0f} reports a second",
    )


BENCHMARKS: Final = (Benchmark(figures=(MANY,), measure=_many),)
