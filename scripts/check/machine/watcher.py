"""A second processor's view of a ring in its first lap: a process that looks at it all the time.

Run as a program it is that process: arguments are the memory's descriptor and size, the ring's place, its entries and
``split`` or ``packed``. It ends when its standard input does and prints what it saw that no driver may see.
"""

import mmap
import select
import subprocess
import sys
from types import TracebackType
from typing import Final, Self

from protocol.errors import BalloonError
from protocol.packed_ring import AVAIL_USED, PackedRing
from protocol.ring_formats import RingLayout
from protocol.split_ring import SplitRing
from scripts.check.machine.deadline import DEADLINE
from scripts.check.machine.driver_queue import DriverQueue
from scripts.check.machine.memory_file import MemoryFile
from scripts.child_processes import module_environment, python_module

READY: Final = b"ready\n"

_MODULE: Final = "scripts.check.machine.watcher"

_LOOKS: Final = 2000
"""Looks at the ring between two looks at the standard input."""


class RingWatcher:
    """Watches the ring of a queue from another process until :meth:`stop`."""

    def __init__(self, memory: MemoryFile, queue: DriverQueue) -> None:
        if not queue.layout.packed:
            # An element that is read too early must not look like the one to come.
            start = queue.place + queue.layout.offsets[2] + 4
            memory.write(start, b"\xff" * (8 * queue.layout.size))
        format_name = "packed" if queue.layout.packed else "split"
        numbers = (memory.fd, memory.size, queue.place, queue.layout.size)
        self._process = subprocess.Popen(
            python_module(_MODULE, *map(str, numbers), format_name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[memory.fd],
            env=module_environment(),
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != READY:
            raise BalloonError("the process that watches the ring did not start")

    def stop(self) -> str:
        """End the watch; return what was wrong, "" if nothing was."""
        try:
            output, _ = self._process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired as error:
            raise BalloonError("the process that watches the ring does not end") from error
        return output.decode().strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def _asked_to_stop() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def _watch_split(memory: memoryview, layout: RingLayout) -> str:
    # Note each element at the first moment at which the index says that it is there; in the end it must be the same.
    ring = SplitRing(layout.size, *(memory[at:] for at in layout.offsets))
    used, elements = ring.used, ring.used_elements
    seen: list[tuple[int, int]] = []
    while not _asked_to_stop():
        for _ in range(_LOOKS):
            now = used[1]
            if now == len(seen):
                continue
            if not len(seen) < now <= layout.size:
                return f"the used index went from {len(seen)} to {now}"
            seen += [(elements[1 + 2 * slot], elements[2 + 2 * slot]) for slot in range(len(seen), now)]
    final = [(elements[1 + 2 * slot], elements[2 + 2 * slot]) for slot in range(len(seen))]
    return _difference(seen, final, "the used index")


def _watch_packed(memory: memoryview, layout: RingLayout) -> str:
    ring = PackedRing(layout.size, *(memory[at:] for at in layout.offsets))
    halves, words = ring.halves, ring.words
    seen: list[tuple[int, int]] = []
    while not _asked_to_stop():
        for _ in range(_LOOKS):
            at = len(seen)
            if at < layout.size and halves[8 * at + 7] & AVAIL_USED == AVAIL_USED:
                seen.append((halves[8 * at + 6], words[4 * at + 2]))
    final = [(halves[8 * at + 6], words[4 * at + 2]) for at in range(len(seen))]
    return _difference(seen, final, "the flags")


def _difference(seen: list[tuple[int, int]], final: list[tuple[int, int]], what: str) -> str:
    for number, (first, last) in enumerate(zip(seen, final, strict=True)):
        if first != last:
            return f"when {what} gave used element {number} to the driver, it held {first}; later it held {last}"
    return ""


def main() -> int:
    """Be the process that watches."""
    fd, size, place, entries = map(int, sys.argv[1:5])
    layout = RingLayout(entries, sys.argv[5] == "packed")
    view = memoryview(mmap.mmap(fd, size))[place : place + layout.bytes]
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    print((_watch_packed if layout.packed else _watch_split)(view, layout), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
