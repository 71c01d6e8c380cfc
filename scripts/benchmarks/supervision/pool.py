"""What idle machines cost all processes of a daemon with workers together."""

import time
from collections.abc import Iterator
from typing import Final

from protocol.units import KIB, MIB
from scripts.benchmarks.figures import Bench, Benchmark, Figure, Result
from scripts.benchmarks.idle import switches, wake_ups
from scripts.benchmarks.rig import Daemon
from scripts.benchmarks.supervision.daemon_processes import processes_of, proportional_bytes
from scripts.benchmarks.supervision.idle_machines import idle_machines

POOL: Final = ("--workers", "2")

MEMORY: Final = Figure(
    name="pool-memory",
    title="memory (PSS) of all processes of the daemon with 200 idle machines of 1 GiB and --workers 2",
    unit="MiB",
    bar=120,
    at_least=False,
)
WAKE_UPS: Final = Figure(
    name="pool-wake-ups",
    title="wake-ups of all threads of all these processes in 6 s",
    unit="wake-ups",
    bar=0,
    at_least=False,
)
CROWD: Final = Figure(
    name="pool-memory-1000",
    title="memory (PSS) of all processes of the daemon with 1000 idle machines of 1 GiB and --workers 2",
    unit="MiB",
    bar=300,
    at_least=False,
)
ALONE: Final = Figure(
    name="vm-worker-memory",
    title="memory (PSS) that each idle machine adds with --workers vm",
    unit="MiB",
    bar=5,
    at_least=False,
)


def _pool(bench: Bench) -> Iterator[Result]:
    count = bench.scale.machines
    bench.progress(f"{MEMORY.name}, {count} machines")
    with Daemon(bench.directory, *POOL) as daemon:
        before = proportional_bytes(processes_of(daemon.pid))
        with idle_machines(daemon.socket_path, count):
            time.sleep(bench.scale.pool_settle_seconds)
            pids = processes_of(daemon.pid)
            size = proportional_bytes(pids)
            bench.progress(f"{WAKE_UPS.name}, {bench.scale.pool_idle_seconds:g} s")
            first = _all_switches(pids)
            time.sleep(bench.scale.pool_idle_seconds)
            last = _all_switches(pids)
    yield Result(figure=MEMORY, value=size / MIB, reference=_against(count, before, size))
    yield Result(
        figure=WAKE_UPS,
        value=wake_ups(first, last),
        reference=f"{count} machines, {len(pids)} processes, {len(last)} threads, {bench.scale.pool_idle_seconds:g} s",
    )


def _all_switches(pids: list[int]) -> dict[str, int]:
    return {thread: count for pid in pids for thread, count in switches(pid).items()}


def _against(count: int, before: int, size: int) -> str:
    return f"{count} machines; without any {before / MIB:.1f} MiB, so {(size - before) / count / KIB:.0f} KiB each"


def _crowd(bench: Bench) -> Iterator[Result]:
    count = bench.scale.crowd
    bench.progress(f"{CROWD.name}, {count} machines")
    before, size = _memory(bench, count, *POOL)
    yield Result(figure=CROWD, value=size / MIB, reference=_against(count, before, size))


def _alone(bench: Bench) -> Iterator[Result]:
    count = bench.scale.vm_workers
    bench.progress(f"{ALONE.name}, {count} machines")
    before, size = _memory(bench, count, "--workers", "vm")
    yield Result(
        figure=ALONE,
        value=(size - before) / count / MIB,
        reference=f"{count} machines; without any {before / MIB:.1f} MiB, together {size / MIB:.1f} MiB",
    )


def _memory(bench: Bench, count: int, *options: str) -> tuple[int, int]:
    # Without machines and with them.
    with Daemon(bench.directory, *options) as daemon:
        before = proportional_bytes(processes_of(daemon.pid))
        with idle_machines(daemon.socket_path, count):
            time.sleep(min(bench.scale.pool_settle_seconds, 2.0))
            return before, proportional_bytes(processes_of(daemon.pid))


BENCHMARKS: Final = (
    Benchmark(figures=(MEMORY, WAKE_UPS), measure=_pool),
    Benchmark(figures=(CROWD,), measure=_crowd),
    Benchmark(figures=(ALONE,), measure=_alone),
)
