"""What many idle machines cost the daemon."""

import re
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from protocol.memory import PAGE_SIZE
from protocol.units import GIB, MIB
from scripts.benchmarks.figures import Bench, Benchmark, BenchmarkError, Figure, Result
from scripts.benchmarks.rig import Daemon, Machine

MEMORY: Final = Figure(
    name="idle-memory",
    title="resident memory of the daemon with 200 connected idle machines of 1 GiB",
    unit="MiB",
    bar=80,
    at_least=False,
)
WAKE_UPS: Final = Figure(
    name="idle-wake-ups",
    title="wake-ups of all threads of the daemon in 2 s with those machines",
    unit="wake-ups",
    bar=0,
    at_least=False,
)

_FDS_PER_MACHINE: Final = 12
_SETTLE: Final = 1.5
"""Seconds between the last connection and the measurement, when threads that are out of work have ended."""


def _status_number(status: str, key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+)", status, re.MULTILINE)
    if match is None:
        raise BenchmarkError(f"this system's process status has no {key}")
    return int(match[1])


def _resident_bytes(pid: int) -> int:
    return _status_number(Path(f"/proc/{pid}/status").read_text(encoding="ascii"), "VmRSS") * 1024


def switches(pid: int) -> dict[str, int]:
    """Return the voluntary context switches of each thread of process ``pid`` since it began, by thread.

    A thread that wakes up gives the processor up again: one each.
    """
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {
        task.name: _status_number((task / "status").read_text(encoding="utf-8"), "voluntary_ctxt_switches")
        for task in tasks
    }


def wake_ups(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """Return the wake-ups between two calls of :func:`switches`. A thread that has ended has woken up once at least."""
    ended = sum(thread not in after for thread in before)
    return ended + sum(count - before.get(thread, 0) for thread, count in after.items())


def _raise_fd_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise BenchmarkError(f"{wanted} file descriptors are needed, and the limit (ulimit -Hn) is {hard}")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _idle(bench: Bench) -> Iterator[Result]:
    count = bench.scale.machines
    _raise_fd_limit(count * _FDS_PER_MACHINE + 100)
    with Daemon(bench.directory) as daemon, ExitStack() as stack:
        before = _resident_bytes(daemon.pid)
        for number in range(count):
            bench.progress(f"{MEMORY.name}, machine {number} of {count}")
            machine = stack.enter_context(Machine(daemon.socket_path, GIB))
            machine.report([(0, PAGE_SIZE)])  # an idle machine has usually been at work before
        time.sleep(_SETTLE)
        bench.progress(f"{WAKE_UPS.name}, {bench.scale.idle_seconds:g} s")
        resident = _resident_bytes(daemon.pid)
        first = switches(daemon.pid)
        time.sleep(bench.scale.idle_seconds)
        last = switches(daemon.pid)
    yield Result(
        figure=MEMORY,
        value=resident / MIB,
        reference=f"{count} machines; without any {before / MIB:.1f} MiB, so {(resident - before) / count / 1024:.0f}"
        " KiB each",
    )
    yield Result(
        figure=WAKE_UPS,
        value=wake_ups(first, last),
        reference=f"{count} machines, {len(last)} threads, {bench.scale.idle_seconds:g} s",
    )


BENCHMARKS: Final = (Benchmark(figures=(MEMORY, WAKE_UPS), measure=_idle),)
