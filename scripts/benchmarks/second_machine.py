"""A :class:`rig.Machine` in a process of its own, for measurements with several machines at the same time.

Run as a program it reads a command a line: ``touch`` answers ``touched``; ``report`` answers with a JSON array of the
begin and end of each report in CLOCK_MONOTONIC seconds.
"""

import json
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import TypeAlias

from scripts.benchmarks.figures import BenchmarkError
from scripts.benchmarks.process import end_process
from scripts.benchmarks.rig import Machine
from scripts.child_processes import module_environment

Span: TypeAlias = tuple[float, float]
"""Begin and end in CLOCK_MONOTONIC seconds, which all processes share."""


class SecondMachine:
    """The running process. Reports its ``size`` bytes in ranges of ``range_bytes``, ``per_report`` at a time."""

    def __init__(self, socket_path: Path, size: int, range_bytes: int, per_report: int) -> None:
        numbers = map(str, (size, range_bytes, per_report))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmarks.second_machine", str(socket_path), *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=module_environment(),
            text=True,
        )

    def _command(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise BenchmarkError("the second machine has died") from error

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("the second machine has died")
        return line

    def touch(self) -> None:
        """Back all of its memory."""
        self._command("touch")
        self._answer()

    def begin(self) -> None:
        """Start reporting all of the memory."""
        self._command("report")

    @property
    def busy(self) -> bool:
        """Whether the reports that :meth:`begin` started are still under way."""
        assert self._process.stdout is not None
        return not select.select([self._process.stdout.fileno()], [], [], 0)[0]

    def end(self) -> list[Span]:
        """Wait until everything is reported; return the time span of each report."""
        return [(begin, end) for begin, end in json.loads(self._answer())]

    def __enter__(self) -> "SecondMachine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_process(self._process)


def _report(machine: Machine, range_bytes: int, per_report: int) -> list[Span]:
    step = range_bytes * per_report
    return [
        machine.report([(address, range_bytes) for address in range(start, start + step, range_bytes)])
        for start in range(0, machine.size, step)
    ]


def main(socket_path: str, *numbers: str) -> None:
    """Serve the commands until standard input ends."""
    size, range_bytes, per_report = map(int, numbers)
    with Machine(Path(socket_path), size) as machine:
        for line in sys.stdin:
            if line.strip() == "touch":
                machine.touch()
                print("touched", flush=True)
            else:
                spans = _report(machine, range_bytes, per_report)
                machine.check_empty()
                print(json.dumps(spans), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
