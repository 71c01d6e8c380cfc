"""Broken devices without the time that Python takes to load the daemon: a process that has loaded it forks each.

Run as a program it is that process. A line of its standard input starts a device: a JSON list of the file for its
standard error and the words for :mod:`scripts.check.broken.serve`. The answer is a line with the id of the child. At
the end of the input it ends the children that are left.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self

from protocol.errors import BalloonError
from scripts.check.broken.serve import main as serve
from scripts.child_processes import module_environment, python_module

_MODULE: Final = "scripts.check.broken.forked_devices"


class ForkedDevice:
    """A device that runs in a child of the process that forks them."""

    def __init__(self, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)  # no child of ours: its id alone may be another's by now

    def has_ended(self) -> bool:
        """Return whether the process is over."""
        return bool(select.select([self._pidfd], [], [], 0)[0])

    def kill(self) -> None:
        """End the process and wait until it is over."""
        if not self.has_ended():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            select.select([self._pidfd], [], [])
        os.close(self._pidfd)


class ForkedDevices:
    """Starts broken devices, from any thread, until it is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, words: Sequence[str], stderr: Path) -> ForkedDevice:
        """Start the device that ``words`` ask :mod:`scripts.check.broken.serve` for; ``stderr`` is what it says.

        Raises:
            BalloonError: the process that forks them is gone.
        """
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(
                    python_module(_MODULE), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=module_environment()
                )
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None
            assert stdout is not None
            try:
                stdin.write(json.dumps([str(stderr), *words]).encode() + b"\n")
                stdin.flush()
            except BrokenPipeError as error:
                raise BalloonError("the process that starts broken devices has ended") from error
            answer = stdout.readline()
            if not answer:
                raise BalloonError("the process that starts broken devices has ended")
            return ForkedDevice(int(answer))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()


def main() -> int:
    """Be the process that forks."""
    children: set[int] = set()
    for line in sys.stdin.buffer:
        stderr, *words = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_device(stderr, words)
        children.add(pid)
        print(pid, flush=True)
        children -= {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0]}
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return 0


def _be_device(stderr: str, words: Sequence[str]) -> NoReturn:
    nowhere = os.open(os.devnull, os.O_RDWR)
    said = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number, fd in enumerate((nowhere, nowhere, said)):
        os.dup2(fd, number)
    status = 1
    try:
        status = serve(words)
    finally:
        sys.stderr.flush()
        os._exit(status)  # what is left to do is the parent's


if __name__ == "__main__":
    sys.exit(main())
