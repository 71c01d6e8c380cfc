"""Which CPU a task of a workload runs on, and so which per-CPU page lists it uses.

A task is a generator that yields the seconds for which it sleeps. It is placed at its first step, on the CPU with the
fewest tasks (the lowest of equals), and stays there. Linux places a new task by the same rule (kernel/sched/fair.c,
``find_idlest_cpu``), and may migrate tasks later by their run times, which an emulated guest does not have. Here the
placement depends on the order of the first steps alone, so the same seed gives the same lists.

The driver's work items and the reporter run between steps, on CPU 0.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager

from guest.mm.page_alloc import PageAllocator


class Scheduler:
    """The CPUs of ``allocator``, with the number of tasks on each. Memory without per-CPU lists has CPU 0 only."""

    def __init__(self, allocator: PageAllocator) -> None:
        self._allocator = allocator
        self._tasks = [0] * max(1, len(allocator.zones[0].pcps))
        self._running: int | None = None

    @property
    def tasks(self) -> tuple[int, ...]:
        """Running tasks on each CPU, without those that wait for other tasks."""
        return tuple(self._tasks)

    def run(self, steps: Iterator[float]) -> Generator[float, None, None]:
        """Run one task: place it, and select its CPU for each of its steps. A step may run steps of other tasks."""
        cpu = self._tasks.index(min(self._tasks))
        self._tasks[cpu] += 1
        try:
            while True:
                caller = self._running
                self._switch(cpu)
                try:
                    seconds = next(steps, None)
                finally:
                    self._switch(caller)
                if seconds is None:
                    return
                yield seconds
        finally:
            self._tasks[cpu] -= 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which the running task is not counted: it waits for tasks that it has started."""
        cpu = self._running
        if cpu is not None:
            self._tasks[cpu] -= 1
        try:
            yield
        finally:
            if cpu is not None:
                self._tasks[cpu] += 1

    def _switch(self, cpu: int | None) -> None:
        self._running = cpu
        if len(self._tasks) > 1:
            self._allocator.run_on_cpu(cpu or 0)
