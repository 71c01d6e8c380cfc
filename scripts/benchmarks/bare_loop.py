"""The reference of most figures: a second process that punches holes into the same file and does nothing else.

Written in C and compiled on the spot where there is a compiler; else this file, run as a program, is the loop. Either
reads ``OFFSET LENGTH COUNT STRIDE`` lines and answers each with the nanoseconds that it took, measured in the process.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from host.memory.discard import punch_hole
from scripts.benchmarks.figures import BenchmarkError
from scripts.benchmarks.process import end_process
from scripts.child_processes import module_environment

_SOURCE: Final = Path(__file__).with_suffix(".c")


def prepare(directory: Path) -> tuple[tuple[str, ...], str]:
    """Return the command that starts the loop, less its last argument, and the language it is written in."""
    program = compile_program(_SOURCE, directory)
    if program is not None:
        return (program,), "C"
    return (sys.executable, "-m", "scripts.benchmarks.bare_loop"), "Python"


def compile_program(source: Path, directory: Path) -> str | None:
    """Return the path of the program in ``directory`` that the C file ``source`` makes, None without a compiler."""
    compiler = shutil.which("cc")
    program = str(directory / source.stem)
    if compiler is not None and source.is_file():
        command = [compiler, "-O2", "-o", program, str(source)]
        if subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return program
    return None


class BareLoop:
    """A running loop over the file ``fd``, which the caller owns."""

    def __init__(self, command: tuple[str, ...], fd: int) -> None:
        self._process = subprocess.Popen(
            [*command, str(fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(fd,),
            env=module_environment(),
            text=True,
        )

    def begin(self, offset: int, length: int, count: int, stride: int = 1) -> None:
        """Start to discard ``count`` adjacent ranges of ``length`` bytes from file ``offset`` on: every ``stride``-th
        first, then those after these, and so on."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{offset} {length} {count} {stride}\n")
            self._process.stdin.flush()
        except OSError as error:
            raise BenchmarkError("the bare loop has died") from error

    def end(self) -> float:
        """Wait for the end of what :meth:`begin` started; return the seconds that it took by the loop's clock."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError("the bare loop has died: this system refuses to punch holes")
        return int(line) / 1e9

    def punch(self, offset: int, length: int, count: int, stride: int = 1) -> float:
        """Discard, and return the seconds: :meth:`begin` and :meth:`end`."""
        self.begin(offset, length, count, stride)
        return self.end()

    def __enter__(self) -> "BareLoop":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_process(self._process)


def _run(fd: int) -> None:
    for line in sys.stdin:
        offset, length, count, stride = map(int, line.split())
        begin = time.monotonic_ns()
        for first in range(stride):
            for number in range(first, count, stride):
                if punch_hole(fd, offset + number * length, length):
                    sys.exit(1)
        print(time.monotonic_ns() - begin, flush=True)


if __name__ == "__main__":
    _run(int(sys.argv[1]))
