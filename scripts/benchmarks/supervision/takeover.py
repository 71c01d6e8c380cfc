"""How long a guest waits for its chain when the worker that has it is killed."""

import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Final

from protocol.units import MIB
from scripts.benchmarks.figures import Bench, Benchmark, BenchmarkError, Figure, Result
from scripts.benchmarks.process import PATIENCE
from scripts.benchmarks.rig import Daemon, Machine
from scripts.benchmarks.supervision.daemon_processes import workers_of

_RANGE: Final = 4 * MIB
_PER_REPORT: Final = 32
_INTO_REPORT: Final = 0.005
"""Seconds from the kick to the kill. The discards of such a report take some 30 ms."""
_LIFE: Final = 0.3
"""Seconds that each worker lives at least: one that ends sooner counts as one that ends at its start."""
_TRIES_MAX: Final = 10

TAKEOVER: Final = Figure(
    name="worker-takeover",
    title="worker killed in a report of 128 MiB that are touched, until the chain is back, the worst",
    unit="ms",
    bar=200,
    at_least=False,
)


def _worker(daemon: Daemon, other_than: int = 0) -> int:
    # It has its name once it runs.
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for pid in workers_of(daemon.pid):
            if pid != other_than:
                return pid
        time.sleep(0.005)
    raise BenchmarkError("the daemon has no worker")


class _Kill(threading.Thread):
    """Kills process ``pid`` in a while, and notes when."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="kill")
        self._pid = pid
        self.at = 0.0

    def run(self) -> None:
        time.sleep(_INTO_REPORT)
        self.at = time.monotonic()
        os.kill(self._pid, signal.SIGKILL)


def _killed_in_report(machine: Machine, pid: int) -> tuple[float, float]:
    # When it was killed, and when the chain was back.
    machine.touch()
    kill = _Kill(pid)
    kill.start()
    _, end = machine.report([(number * _RANGE, _RANGE) for number in range(_PER_REPORT)])
    kill.join()
    return kill.at, end


def _takeover(bench: Bench) -> Iterator[Result]:
    waits: list[float] = []
    alone: list[float] = []
    tries = 0
    with (
        Daemon(bench.directory, "--workers", "1", "--log-level", "error") as daemon,
        Machine(daemon.socket_path, _RANGE * _PER_REPORT) as machine,
    ):
        pid = 0
        while len(waits) < bench.scale.kills:
            bench.progress(f"{TAKEOVER.name}, {len(waits)} of {bench.scale.kills} kills")
            machine.touch()
            alone.append(machine.report_all(_RANGE, _PER_REPORT))
            pid = _worker(daemon, pid)
            time.sleep(_LIFE)
            killed, end = _killed_in_report(machine, pid)
            machine.check_empty()
            tries += 1
            if end > killed:  # else the report was over before
                waits.append(end - killed)
            elif tries > _TRIES_MAX * bench.scale.kills:
                raise BenchmarkError("reports are over before a worker can be killed in them")
    yield Result(
        figure=TAKEOVER,
        value=max(waits) * 1e3,
        reference=f"{len(waits)} kills, median {statistics.median(waits) * 1e3:.0f} ms;"
        f" the whole report without a kill {statistics.median(alone) * 1e3:.0f} ms",
    )


BENCHMARKS: Final = (Benchmark(figures=(TAKEOVER,), measure=_takeover),)
