"""The balloon on demand: how fast the free memory of a guest is reclaimed, and how fast its balloon
reaches a new size."""

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from guest.ram import GuestRam
from host.qmp.ask import ask
from protocol.memory import PAGE_SIZE
from protocol.units import MIB
from scripts.benchmarks.bare_loop import BareLoop
from scripts.benchmarks.emulated_guest import Guest
from scripts.benchmarks.figures import Bench, Benchmark, BenchmarkError, Figure, Result
from scripts.benchmarks.rig import Daemon

RECLAIM: Final = Figure(
    name="reclaim",
    title="reclaim by hinting 1 GiB that a guest used and freed, less 50 ms, against a bare loop",
    unit="of bare time",
    bar=1.2,
    at_least=False,
)
INFLATE: Final = Figure(
    name="inflate-1g",
    title="a guest's balloon told to be 1 GiB: until actual says so, median",
    unit="s",
    bar=3.0,
    at_least=False,
)

_RANGE: Final = 4 * MIB
_ALLOWANCE: Final = 0.05
"""Seconds that the request alone may take, for any size."""


def _wait_for(events: Iterator[dict[str, Any]], name: str) -> dict[str, Any]:
    for event in events:
        if event["event"] == name:
            return event
    raise BenchmarkError("the guest ended early")


def _reclaim(bench: Bench) -> Iterator[Result]:
    size = bench.scale.freed_bytes
    workload = ("--workload", f"memhog:size={size},hold=0", "--reporter", "off", "--hold")
    ratios: list[float] = []
    times: list[float] = []
    bare: list[float] = []
    control = bench.directory / "control.sock"
    ram = GuestRam(size)
    try:
        with (
            Daemon(bench.directory, "--control", str(control), "--features", "free-page-hint=on") as daemon,
            BareLoop(bench.bare_loop, ram.fd) as loop,
        ):
            for number in range(1 + bench.scale.guests):
                bench.progress(f"{RECLAIM.name}, guest {number} of {bench.scale.guests}")
                with Guest(daemon.socket_path, "--memory", str(size + size // 4), *workload) as guest:
                    _wait_for(guest.events(), "finished")
                    times.append(_timed_reclaim(control, size))
                ram.fill(0, size // PAGE_SIZE, 1)
                bare.append(loop.punch(0, _RANGE, size // _RANGE))
                ratios.append(max(times[-1] - _ALLOWANCE, 0.0) / bare[-1])
    finally:
        ram.close()
    yield Result(
        figure=RECLAIM,
        value=statistics.median(ratios[1:]),
        reference=f"bare fallocate loop ({bench.bare_language}) {statistics.median(bare[1:]):.3f} s,"
        f" reclaim {statistics.median(times[1:]):.3f} s",
    )


def _timed_reclaim(control: Path, size: int) -> float:
    begin = time.monotonic()
    result = ask(control, "reclaim", {"method": "hint"})
    seconds = time.monotonic() - begin
    if not isinstance(result, dict) or not result["complete"] or result["discarded-bytes"] < size:
        raise BenchmarkError(f"not all was reclaimed: {result}")
    return seconds


def _inflate(bench: Bench) -> Iterator[Result]:
    size = bench.scale.freed_bytes
    memory = size + size // 4
    control = bench.directory / "control.sock"
    times: list[float] = []
    with Daemon(bench.directory, "--control", str(control)) as daemon:
        for number in range(1 + bench.scale.guests):
            bench.progress(f"{INFLATE.name}, guest {number} of {bench.scale.guests}")
            with Guest(daemon.socket_path, "--memory", str(memory), "--reporter", "off", "--hold") as guest:
                events = guest.events()
                _wait_for(events, "booted")
                begin = time.monotonic()
                ask(control, "balloon", {"value": memory - size})
                while (event := _wait_for(events, "inflate"))["actual_pages"] * PAGE_SIZE < size:
                    pass
                times.append(event["t"] - begin)
    yield Result(
        figure=INFLATE,
        value=statistics.median(times[1:]),
        reference=f"slowest {max(times[1:]):.2f} s; {os.cpu_count()} processors for guest and daemon together",
    )


BENCHMARKS: Final = (
    Benchmark(figures=(RECLAIM,), measure=_reclaim),
    Benchmark(figures=(INFLATE,), measure=_inflate),
)
