"""The program of ``--start``: what is judged, started for the run and ended after it."""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Final

from scripts.check.programs import end_group, how_ended, last_line, words_of
from scripts.check.verdict import TargetError

_STDERR_BYTES: Final = 65536
"""How much of the end of standard error is looked at for its last line."""


class Program:
    """A command that is started, again where it has ended.

    It runs in a process group of its own and without a terminal. The socket is the caller's matter.
    """

    def __init__(self, command: str, environment: Mapping[str, str] | None = None) -> None:
        """Take a command line, quoted as in a shell, and its environment, by default that of this process.

        Raises:
            UsageError: it is empty, or a quotation mark is missing.
        """
        self.words = words_of(command, "--start")
        self._stderr = tempfile.TemporaryFile("a+b")  # noqa: SIM115  (open for the life of the object)
        self._environment = environment
        self._said = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the command. It must not run.

        Raises:
            TargetError: it cannot be started.
        """
        assert self._process is None or self._process.poll() is not None
        self.end()  # what it started may go on
        self.mark()
        try:
            self._process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise TargetError(f"--start: {self.words[0]}: {error.strerror or error}") from error

    @property
    def pid(self) -> int | None:
        """The process that runs the command, None before it is started."""
        return None if self._process is None else self._process.pid

    def status(self) -> int | None:
        """Return the exit status, negative for a signal, None while the command runs. 0 before it is started."""
        return 0 if self._process is None else self._process.poll()

    def how_it_ended(self) -> str:
        """Say how the command ended, with the last line of its standard error."""
        status = self.status()
        if status is None:
            return f"{self.words[0]} runs"
        line = self._last_line()
        return f"{self.words[0]} {how_ended(status)}" + (f": {line}" if line else "")

    def mark(self) -> None:
        """Have only what is written to standard error from now on count for :meth:`how_it_ended`."""
        self._said = self._stderr_size()

    def _stderr_size(self) -> int:
        return os.fstat(self._stderr.fileno()).st_size

    def _last_line(self) -> str:
        start = max(self._said, self._stderr_size() - _STDERR_BYTES)
        tail = os.pread(self._stderr.fileno(), _STDERR_BYTES, start)
        return last_line(tail.decode(errors="replace"))

    def end(self) -> None:
        """End the command and what it started, first with SIGTERM; wait for it."""
        if self._process is not None:
            end_group(self._process)
        self._process = None

    def close(self) -> None:
        """End the command and forget what it wrote."""
        self.end()
        self._stderr.close()
