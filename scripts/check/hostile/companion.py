"""Processes of ours beside the hostile one: the good machine and the control."""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from protocol.errors import BalloonError
from scripts.check.hostile.samples import Sample, read_samples
from scripts.check.machine.deadline import becomes_true
from scripts.child_processes import module_environment, python_module

START_SECONDS: Final = 20.0
END_SECONDS: Final = 30.0


class Companion:
    """A process that measures until its standard input ends, which it does with this process in every case."""

    def __init__(self, module: str, arguments: Sequence[str], samples: Path) -> None:
        """Start it; return when it has measured something.

        Raises:
            BalloonError: it ends instead.
        """
        self._path = samples
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (open for the life of the object)
        self._process = subprocess.Popen(
            python_module(module, *arguments, str(samples)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            env=module_environment(),
            start_new_session=True,
        )

        def has_begun() -> bool:
            return self._process.poll() is not None or (samples.exists() and samples.stat().st_size > 0)

        begun = becomes_true(has_begun, START_SECONDS)
        if not begun or self._process.poll() is not None:
            self._kill()
            complaint = self.complaint
            self.close()
            raise BalloonError(complaint or f"{module} measured nothing within {START_SECONDS:g} s")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def samples(self) -> list[Sample]:
        """Return all samples so far."""
        return read_samples(self._path)

    @property
    def complaint(self) -> str:
        """The last line of its standard error, empty without one."""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    @property
    def has_ended(self) -> bool:
        """Whether it has ended, which it does before it is told to only with a complaint."""
        return self._process.poll() is not None

    def stop(self) -> str:
        """Have it end; return its complaint, empty if it has none."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        try:
            status = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            return f"process {self._process.pid} did not end within {END_SECONDS:g} s"
        return "" if status == 0 else self.complaint or f"ended with status {status}"

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it at once, if it runs, and close its files."""
        self._kill()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
