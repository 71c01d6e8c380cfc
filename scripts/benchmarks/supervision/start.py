"""How long the daemon takes to start."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from scripts.benchmarks.figures import Bench, Benchmark, BenchmarkError, Figure, Result
from scripts.benchmarks.process import end_process
from scripts.child_processes import module_environment, python_module

LISTENING: Final = Figure(
    name="start-listening",
    title="start of the daemon to its event 'listening', median, with --workers 0 or 2, whichever takes longer",
    unit="ms",
    bar=250,
    at_least=False,
)
CAPABILITIES: Final = Figure(
    name="start-print",
    title="--print-capabilities from start to end, median",
    unit="ms",
    bar=100,
    at_least=False,
)


def _start(bench: Bench, workers: int) -> float:
    # Seconds until the event is read.
    command = python_module("host", "--socket-path", str(bench.directory / "start.sock"), "--events", "-")
    begin = time.monotonic()
    process = subprocess.Popen(
        [*command, "--workers", str(workers)], stdout=subprocess.PIPE, env=module_environment(), text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.monotonic() - begin
    finally:
        end_process(process)
    if '"listening"' not in line:
        raise BenchmarkError("the daemon does not start")
    return seconds


def _run(*command: str) -> float:
    begin = time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, env=module_environment(), check=True)
    return time.monotonic() - begin


def _bare() -> float:
    return _run(sys.executable, "-S", "-c", "pass")


def _medians(bench: Bench, figure: Figure, *measures: Callable[[], float]) -> list[float]:
    # In milliseconds. They take turns; the first round fills the caches.
    seconds: list[list[float]] = [[] for _ in measures]
    for number in range(1 + bench.scale.starts):
        bench.progress(f"{figure.name}, {number} of {bench.scale.starts}")
        for each, measure in zip(seconds, measures, strict=True):
            each.append(measure())
    return [statistics.median(each[1:]) * 1e3 for each in seconds]


def _listening(bench: Bench) -> Iterator[Result]:
    one, two, bare = _medians(bench, LISTENING, lambda: _start(bench, 0), lambda: _start(bench, 2), _bare)
    yield Result(
        figure=LISTENING,
        value=max(one, two),
        reference=f"--workers 0 {one:.0f} ms, 2 {two:.0f} ms; python -S -c pass {bare:.0f} ms",
    )


def _capabilities(bench: Bench) -> Iterator[Result]:
    command = python_module("host", "--print-capabilities")
    value, bare = _medians(bench, CAPABILITIES, lambda: _run(*command), _bare)
    yield Result(figure=CAPABILITIES, value=value, reference=f"python -S -c pass {bare:.0f} ms")


BENCHMARKS: Final = (
    Benchmark(figures=(LISTENING,), measure=_listening),
    Benchmark(figures=(CAPABILITIES,), measure=_capabilities),
)
