"""A machine for workloads whose pages hold nothing, and a clock that only workloads move."""

from collections.abc import Callable

from guest.machine import Machine
from guest.mm.page_alloc import PageAllocator
from guest.workloads.allocation_trace import TraceWriter
from guest.workloads.workload import Workload


class NoContent:
    """Page content that is always right and costs nothing."""

    def fill(self, pfn: int, pages: int, stamp: int) -> None:
        """Do nothing."""

    def count_corrupted(self, pfn: int, pages: int, stamp: int) -> int:
        """Find nothing."""
        return 0


class VirtualRun:
    """Runs workloads, one after the other, on a machine of ``pages`` pages in virtual time, and keeps what happened.

    ``trace`` is the recording; ``each_step`` is called whenever the workload lets time pass.
    """

    def __init__(self, pages: int = 1 << 16) -> None:
        self.allocator = PageAllocator(pages)
        self.now = 0.0
        self.steps = 0
        self.phases: list[str] = []
        self.peak_bytes = 0
        self._lines: list[str] = []
        recorder = TraceWriter(self._lines.append, lambda: self.now)
        self.machine = Machine(self.allocator, NoContent(), self.phases.append, self._corrupted, recorder=recorder)

    def run(
        self, workload: Workload, seed: int = 0, *, until: float = 1e9, each_step: Callable[[], None] = lambda: None
    ) -> "VirtualRun":
        """Run ``workload`` to its end, or to ``until`` seconds."""
        for seconds in workload.run(self.machine, seed):
            assert seconds >= 0
            self.peak_bytes = max(self.peak_bytes, self.machine.allocated_bytes)
            self.steps += 1
            each_step()
            self.now += seconds
            if self.now >= until:
                break
        self.allocator.validate()
        return self

    @property
    def trace(self) -> str:
        """Everything that happened, in the trace format."""
        return "".join(self._lines)

    @staticmethod
    def _corrupted(pfn: int, order: int, pages: int) -> None:
        raise AssertionError(f"{pages} pages corrupted at pfn {pfn} order {order}")
