"""What the benchmarks need of processes: their end, and how busy the processors are with others."""

import os
import subprocess
import time
from typing import IO, Final

PATIENCE: Final = 20.0
"""Seconds that a child may take to start, to answer or to end, on a busy system."""


def busy_processors(seconds: float) -> float:
    """Return how many processors other processes kept busy on average during the next ``seconds``."""
    before, begin = _busy_seconds(), time.monotonic()
    time.sleep(seconds)
    return (_busy_seconds() - before) / (time.monotonic() - begin)


def _busy_seconds() -> float:
    # The first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal, in clock ticks.
    with open("/proc/stat", encoding="ascii") as stat:
        ticks = [int(word) for word in stat.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def end_process(process: "subprocess.Popen[str]") -> None:
    """End a child: close its standard input, send SIGTERM, and SIGKILL after :data:`PATIENCE`."""
    pipes: list[IO[str] | None] = [process.stdin, process.stdout]
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in pipes:
        if pipe is not None:
            pipe.close()
