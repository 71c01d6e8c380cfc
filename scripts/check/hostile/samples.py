"""Times that one process measures and another reads while both run, and what they say."""

import bisect
import statistics
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

_RECORD: Final = struct.Struct("<dddd")
_AT_ONCE: Final = 50

DELAY_LEAST: Final = 0.002
"""Seconds that the control takes at least where the machine is what delays it."""


class Sample(NamedTuple):
    """One measured time: when it began (CLOCK_MONOTONIC, in seconds) and how long it took.

    ``waited`` is for how long of that the threads that it depends on waited for a processor, ``together`` the sum of
    what all threads waited, at the same time or not. Both are 0 where it was short.
    """

    at: float
    seconds: float
    waited: float = 0.0
    together: float = 0.0

    @property
    def end(self) -> float:
        """When it ended."""
        return self.at + self.seconds


class SampleWriter:
    """Appends samples to a file, some at a time."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._kept: list[bytes] = []

    def add(self, sample: Sample) -> None:
        """Take one sample."""
        self._kept.append(_RECORD.pack(*sample))
        if len(self._kept) == _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write the samples that were taken."""
        self._file.write(b"".join(self._kept))
        self._kept.clear()

    def close(self) -> None:
        """Write the rest and close."""
        self.flush()
        self._file.close()


def read_samples(path: Path) -> list[Sample]:
    """Return the samples in a file so far."""
    data = path.read_bytes()
    return [Sample(*record) for record in _RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size])]


class Figures(NamedTuple):
    """Number of samples; median, 99th percentile and longest of them in seconds."""

    samples: int = 0
    median: float = 0.0
    p99: float = 0.0
    longest: float = 0.0


def figures_of(samples: Sequence[Sample]) -> Figures:
    """Return the figures of ``samples``, all 0 for none."""
    times = sorted(one.seconds for one in samples)
    if not times:
        return Figures()
    return Figures(len(times), statistics.median(times), times[int((len(times) - 1) * 0.99)], times[-1])


def between(samples: Sequence[Sample], begin: float, end: float) -> Sequence[Sample]:
    """Return those of ``samples``, which are in order, that began from ``begin`` to before ``end``."""
    first = bisect.bisect_left(samples, begin, key=lambda one: one.at)
    return samples[first : bisect.bisect_left(samples, end, key=lambda one: one.at)]


def shared_with(sample: Sample, control: Sequence[Sample]) -> float:
    """Return for how many seconds of ``sample`` the control, whose samples are in order, was delayed too."""
    first = max(0, bisect.bisect_left(control, sample.at, key=lambda one: one.at) - 1)
    shared = 0.0
    for one in control[first:]:
        if one.at >= sample.end:
            break
        if one.seconds >= DELAY_LEAST:
            shared += max(0.0, min(one.end, sample.end) - max(one.at, sample.at))
    return shared
