"""The good machine, a process of its own: it reports a few pages every few milliseconds and measures each report.

``python -m scripts.check.hostile.good_machine SOCKET FILE`` writes to FILE the time of each report from its kick to the
interrupt that gives it back, and ends when its standard input does.
"""

import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError
from protocol.memory import PAGE_SIZE
from protocol.process.command_line import run_command
from scripts.check.hostile.processor_wait import ProcessorWait
from scripts.check.hostile.samples import Sample, SampleWriter
from scripts.check.machine.memory_file import DATA_AT, MIB
from scripts.check.machine.vhost_user_device import VhostUserDevice, VhostUserMachine
from scripts.check.verdict import Outcome

PERIOD: Final = 0.005
"""Seconds from one report to the next."""

PATIENCE: Final = 20.0
"""Seconds after which a report counts as lost."""

RANGES: Final = 4
"""Pages of one report, each with a page beside it that has to stay."""

_STRIDE: Final = 2 * PAGE_SIZE
_LAST: Final = DATA_AT + 4 * MIB
_LOOK_EVERY: Final = 100
_LONG: Final = 0.005
"""Seconds from which on it is asked for how long of a report's time there was no processor."""


class GoodMachine:
    """The machine and its reports."""

    def __init__(self, machine: VhostUserMachine) -> None:
        self._machine = machine
        self._wait = ProcessorWait(machine.connection.peer_pid)
        self._at = DATA_AT
        self._reports = 0
        self._kept = set(range(DATA_AT + PAGE_SIZE, _LAST, _STRIDE))
        for page in self._kept:
            machine.memory.touch(page, PAGE_SIZE)
        machine.reporting.driver.enable_interrupt()

    def report(self) -> Sample:
        """Report a few pages; return when they were offered and how long it took until they came back.

        Raises:
            BalloonError: they do not come back.
            Failed: they are not gone, or another page is.
        """
        machine, queue = self._machine, self._machine.reporting
        pages = [self._at + number * _STRIDE for number in range(RANGES)]
        for page in pages:
            machine.memory.touch(page, PAGE_SIZE)
        self._at = DATA_AT if pages[-1] + _STRIDE >= _LAST else pages[-1] + _STRIDE
        self._reports += 1
        self._wait.begin()
        begin = time.monotonic()
        queue.offer((), machine.buffers((page, PAGE_SIZE) for page in pages))
        while queue.take_used() is None:
            if not queue.driver.enable_interrupt() and not machine.wait_for_interrupt(queue.index, PATIENCE):
                raise BalloonError(f"the good machine's report {self._reports} did not come back in {PATIENCE:g} s")
        took = time.monotonic() - begin
        three, together = self._wait.seconds() if took >= _LONG else (0.0, 0.0)
        if self._reports % _LOOK_EVERY == 1:
            self.check()
        return Sample(begin, took, min(took, three), together)

    def check(self) -> None:
        """Check that exactly what was reported is gone. Raises Failed if not."""
        self._machine.check_gone(self._kept, set(), "M-safe")


def main(argv: Sequence[str] | None = None) -> int:
    """Report until standard input ends; return the exit status."""
    path, samples = (sys.argv[1:] if argv is None else argv)[:2]
    stop = sys.stdin.fileno()

    def run() -> int:
        writer = SampleWriter(Path(samples))
        try:
            with VhostUserDevice(Path(path)).machine() as machine:
                good = GoodMachine(machine)
                due = time.monotonic()
                while not select.select([stop], [], [], max(0.0, due - time.monotonic()))[0]:
                    writer.add(good.report())
                    due = max(due + PERIOD, time.monotonic())
                good.check()
        except Outcome as outcome:
            raise BalloonError(outcome.reason) from outcome
        finally:
            writer.close()
        return 0

    return run_command("balloon-check hostile: the good machine", run)


if __name__ == "__main__":
    sys.exit(main())
