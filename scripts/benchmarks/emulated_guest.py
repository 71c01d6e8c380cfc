"""The emulated guest as a whole: how fast it returns memory, how fast a large one starts, and its bytes a page."""

import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.reporters import make_reporter
from guest.mm.reporting.zone_reporting import DELAY
from guest.ram import GuestRam
from protocol.memory import PAGE_SIZE
from protocol.units import GIB, MIB, format_size
from scripts.benchmarks.bare_loop import BareLoop
from scripts.benchmarks.figures import Bench, Benchmark, BenchmarkError, Figure, Result
from scripts.benchmarks.process import end_process
from scripts.benchmarks.rig import Daemon
from scripts.child_processes import module_environment

FREE: Final = Figure(
    name="guest-free",
    title="a guest frees 1 GiB (boundary): time until it is back, less the delay of 0.1 s, against a bare loop",
    unit="of bare time",
    bar=1.3,
    at_least=False,
)
BOOT: Final = Figure(
    name="guest-boot",
    title="a guest of 64 GiB: from process start to ready",
    unit="s",
    bar=1.0,
    at_least=False,
)
METADATA: Final = Figure(
    name="guest-metadata",
    title="a guest of 64 GiB: what allocator and reporter keep for each page",
    unit="bytes",
    bar=1.3,
    at_least=False,
)

_RANGE: Final = 4 * MIB
_LARGE: Final = 64 * GIB
_LEFT_MAX: Final = 8 * MIB
"""What may stay resident of a guest that returned all memory: its rings, and blocks that merged at the end."""

Event = dict[str, Any]


class Guest:
    """``python -m guest``, followed by its events."""

    def __init__(self, socket_path: Path, *options: str) -> None:
        self.begin = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "guest", "--socket-path", str(socket_path), "--events", "-", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=module_environment(),
            text=True,
        )

    def events(self) -> Iterator[Event]:
        """Yield its events until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield json.loads(line)

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stderr is not None
        end_process(self._process)
        self._process.stderr.close()


def _freeing_seconds(events: Sequence[Event], freed_bytes: int) -> float:
    # From the event that begins freeing to the acknowledgement of the last report.
    begins = [event["t"] for event in events if event["event"] == "phase" and event["name"] == "free"]
    if not begins or events[-1]["event"] != "detached":
        raise BenchmarkError("the guest did not come to its end")
    reports = [event for event in events if event["event"] == "report" and event["t"] >= begins[0]]
    left = [event["resident_bytes"] for event in events if event["event"] == "memory"][-1]
    if left > _LEFT_MAX or sum(report["bytes"] for report in reports) < freed_bytes - _LEFT_MAX:
        raise BenchmarkError(f"the guest kept {format_size(left)} of what it freed")
    return float(reports[-1]["t"] - begins[0])


def _free(bench: Bench) -> Iterator[Result]:
    size = bench.scale.freed_bytes
    workload = f"memhog:size={size},hold=1,rest=2"
    options = ("--memory", str(size + size // 4), "--reporter", "boundary", "--workload", workload)
    ratios: list[float] = []
    times: list[float] = []
    bare: list[float] = []
    ram = GuestRam(size)
    try:
        with Daemon(bench.directory) as daemon, BareLoop(bench.bare_loop, ram.fd) as loop:
            for number in range(1 + bench.scale.guests):
                bench.progress(f"{FREE.name}, guest {number} of {bench.scale.guests}")
                with Guest(daemon.socket_path, *options) as guest:
                    times.append(_freeing_seconds(list(guest.events()), size) - DELAY)
                ram.fill(0, size // PAGE_SIZE, 1)
                bare.append(loop.punch(0, _RANGE, size // _RANGE))
                ratios.append(times[-1] / bare[-1])
    finally:
        ram.close()
    yield Result(
        figure=FREE,
        value=statistics.median(ratios[1:]),
        reference=f"bare fallocate loop ({bench.bare_language}) {statistics.median(bare[1:]):.3f} s,"
        f" guest {statistics.median(times[1:]):.3f} s",
    )


def _boot(bench: Bench) -> Iterator[Result]:
    seconds: list[float] = []
    bare: list[float] = []
    with Daemon(bench.directory) as daemon:
        for number in range(1 + bench.scale.guests):
            bench.progress(f"{BOOT.name}, guest {number} of {bench.scale.guests}")
            with Guest(daemon.socket_path, "--memory", str(_LARGE)) as guest:
                booted = next((event["t"] for event in guest.events() if event["event"] == "booted"), None)
            if booted is None:
                raise BenchmarkError(f"a guest of {format_size(_LARGE)} does not start")
            seconds.append(booted - guest.begin)
            begin = time.monotonic()
            subprocess.run([sys.executable, "-c", "import asyncio"], env=module_environment(), check=True)
            bare.append(time.monotonic() - begin)
    yield Result(
        figure=BOOT,
        value=statistics.median(seconds[1:]),
        reference=f"the interpreter with asyncio alone {statistics.median(bare[1:]):.2f} s",
    )


def _metadata(bench: Bench) -> Iterator[Result]:
    bench.progress(METADATA.name)
    pages = _LARGE // PAGE_SIZE
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        reporter = make_reporter("boundary", PageAllocator(pages))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    yield Result(
        figure=METADATA,
        value=(after - before) / reporter.allocator.total_pages,
        reference="struct page in Linux 64 bytes",
    )


BENCHMARKS: Final = (
    Benchmark(figures=(FREE,), measure=_free),
    Benchmark(figures=(BOOT,), measure=_boot),
    Benchmark(figures=(METADATA,), measure=_metadata),
)
