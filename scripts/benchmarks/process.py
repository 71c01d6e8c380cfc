"""Child processes of the benchmarks: started with the packages of this checkout, and certain to end."""

import os
import subprocess
import time
from pathlib import Path
from typing import IO, Final

_ROOT: Final = Path(__file__).resolve().parents[2]

PATIENCE: Final = 20.0
"""Seconds that a child may take to start, to answer or to end, however busy the system is."""


def environment() -> dict[str, str]:
    """Return the environment for a child that is to find the packages where this process found them."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


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
    """End a child: close its standard input, ask it to terminate, and insist if it does not."""
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
