"""How long threads were ready to run and had no processor, as the kernel counts it.

Source: Linux Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat": time on a processor, time waiting on a
run queue, both in nanoseconds, and the number of timeslices. A thread whose processor a hypervisor has taken counts as
running: that is what "steal" of proc_stat(5) has, in clock ticks of all processors.
"""

import contextlib
import os
from typing import Final

_LENGTH: Final = 96
_NANOSECOND: Final = 1e-9
_LIST_EVERY: Final = 20
_STEAL: Final = 8
"""Place of steal in the first line of /proc/stat, after its name and seven other times."""

_STAT_LENGTH: Final = 256
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


class ProcessorWait:
    """Watches a daemon and this process between :meth:`begin` and :meth:`seconds`.

    A report passes from this process through the daemon's event loop, its first thread, to one worker and back. So what
    counts is the wait of this process, of the event loop, and of the other thread that waited longest: a thread that
    is taken off its processor while it holds the interpreter's lock delays all of them.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._own = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        self._stat = os.open("/proc/stat", os.O_RDONLY | os.O_CLOEXEC)
        self._files: dict[int, int] = {}
        self._before: dict[int, int] = {}
        self._own_before = 0
        self._stolen_before = 0.0
        self._begun = 0

    def begin(self) -> None:
        """Note the counters."""
        if self._begun % _LIST_EVERY == 0:
            self._list()
        self._begun += 1
        self._before = self._counters()
        self._own_before = _waited(self._own) or 0
        self._stolen_before = self._stolen()

    def seconds(self) -> tuple[float, float]:
        """Return the seconds waited for a processor since :meth:`begin`: by the three, and by all threads together.

        What a hypervisor has taken is in both. A thread that has ended counts for nothing.
        """
        stolen = self._stolen() - self._stolen_before
        self._list()
        waits = {tid: waited - self._before.get(tid, 0) for tid, waited in self._counters().items()}
        own = (_waited(self._own) or 0) - self._own_before
        loop = waits.pop(self._pid, 0)
        three = own + loop + max(waits.values(), default=0)
        return stolen + three * _NANOSECOND, stolen + (own + loop + sum(waits.values())) * _NANOSECOND

    def _stolen(self) -> float:
        return int(os.pread(self._stat, _STAT_LENGTH, 0).split(None, _STEAL + 1)[_STEAL]) * _TICK

    def _list(self) -> None:
        with contextlib.suppress(OSError):  # the daemon has ended, which the caller finds out
            threads = {int(name) for name in os.listdir(f"/proc/{self._pid}/task")}
            for tid in self._files.keys() - threads:
                os.close(self._files.pop(tid))
            for tid in threads - self._files.keys():
                with contextlib.suppress(OSError):
                    path = f"/proc/{self._pid}/task/{tid}/schedstat"
                    self._files[tid] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _counters(self) -> dict[int, int]:
        found = {tid: _waited(fd) for tid, fd in self._files.items()}
        return {tid: waited for tid, waited in found.items() if waited is not None}

    def close(self) -> None:
        """Close the counters' files."""
        for fd in (self._own, self._stat, *self._files.values()):
            os.close(fd)


def _waited(fd: int) -> int | None:
    # Nanoseconds, None for a thread that has ended.
    try:
        return int(os.pread(fd, _LENGTH, 0).split()[1])
    except OSError:
        return None
