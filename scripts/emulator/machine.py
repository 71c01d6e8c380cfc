"""A running QEMU, driven over the guest's second serial line and QEMU's monitor."""

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from guest.linux.control_line import parse_features
from guest.linux.ram_file import RamFile
from host.qmp.qmp_client import QmpClient, connect
from protocol.errors import BalloonError
from scripts.child_processes import Child
from scripts.emulator.command import MachinePlan, unsuitable

START_SECONDS: Final = 30.0
BOOT_SECONDS: Final = 120.0
"""Seconds that a guest may take to boot. The usual time is 2 s; a busy machine takes longer."""

_CHECK_SECONDS: Final = 2.0


def check_qemu(qemu: Path) -> str:
    """Return the version line of a QEMU that can attach to the daemon.

    Raises:
        BalloonError: it is too old, lacks the device or does not run; one line.
    """
    try:
        version, devices = (
            subprocess.run(
                [qemu, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
            ).stdout.decode(errors="replace")
            for words in (("--version",), ("-device", "help"))
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BalloonError(f"{qemu}: {error}") from error
    if (problem := unsuitable(version, devices)) is not None:
        raise BalloonError(f"{qemu}: {problem}")
    return version.splitlines()[0]


class Agent:
    """The guest's second serial line: it takes a line of shell, and returns its output and exit status."""

    def __init__(self, path: Path, check: Callable[[], None]) -> None:
        """Connect to the socket at ``path``. ``check`` is called while an answer is missing; it raises if none will
        come."""
        self._socket = connect(path, start_seconds=START_SECONDS)
        self._check = check
        self._unread = ""
        self._unanswered = 0

    def wait_ready(self) -> tuple[str, int | None]:
        """Wait until the guest has booted; return its release and the features of its balloon, None without one."""
        line = self._line(r"^ready (\S+) (\S+)\r?\n", BOOT_SECONDS)
        self._unanswered = 0
        return line[1], None if line[2] == "none" else parse_features(line[2])

    def run(self, script: str, seconds: float = 60.0) -> str:
        """Run one line of shell in the guest; return what it wrote.

        Raises:
            BalloonError: it failed, or took longer than ``seconds``.
        """
        self._socket.sendall(script.encode() + b"\n")
        self._unanswered += 1
        while True:  # the answer to an earlier command that took too long comes first
            found = self._line(r"^done ([0-9]+)\r?\n", seconds)
            self._unanswered -= 1
            if not self._unanswered:
                break
        before = found.string[: found.start()]
        if found[1] != "0":
            raise BalloonError(f"the guest's {script!r} ended with status {found[1]}: {before.strip()}")
        return before

    def _line(self, pattern: str, seconds: float) -> re.Match[str]:
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self._unread, re.MULTILINE)) is None:
            self._socket.settimeout(_CHECK_SECONDS)
            try:
                data = self._socket.recv(65536)
            except TimeoutError as error:
                self._check()
                if time.monotonic() > end:
                    raise BalloonError(f"no answer from the guest within {seconds:.0f} s") from error
                continue
            except OSError as error:
                raise BalloonError(f"the guest's line broke: {error.strerror}") from error
            if not data:
                raise BalloonError("QEMU ended")
            self._unread += data.decode(errors="replace")
        self._unread = self._unread[found.end() :]
        return found

    def close(self) -> None:
        """Close the line."""
        self._socket.close()


class EmulatedMachine:
    """A running QEMU. As a context manager it closes its connections; the caller ends the process."""

    def __init__(self, plan: MachinePlan, child: Child) -> None:
        """Open the guest's line and the monitor.

        Raises:
            BalloonError: QEMU did not start.
        """
        self.plan = plan
        self.child = child
        self._ram: RamFile | None = None
        try:
            self.monitor = QmpClient(plan.monitor, start_seconds=START_SECONDS)
            self.agent = Agent(plan.agent, self.check_running)
        except BalloonError as error:
            raise BalloonError(child.how_it_ended() if child.ended() else str(error)) from error

    def check_running(self) -> None:
        """Raise :class:`BalloonError` if QEMU has ended or its processor has given up."""
        if self.child.ended():
            raise BalloonError(self.child.how_it_ended())
        status = self.monitor.command("query-status")["status"]
        if status != "running":
            raise BalloonError(
                f"QEMU stopped the guest: {status} (--accelerator {self.plan.accelerator}; try the other)"
            )

    def resident_bytes(self) -> int:
        """Return what the guest's memory costs the host, in bytes."""
        if self._ram is None:
            self._ram = RamFile(self.child.process.pid, self.plan.memory)
        return self._ram.resident_bytes()

    def meminfo(self) -> dict[str, int]:
        """Return the guest's own ``/proc/meminfo`` in bytes."""
        lines = (line.split() for line in self.agent.run("cat /proc/meminfo").splitlines() if line.strip())
        return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}

    def free_blocks(self) -> int:
        """Return the bytes of free blocks that the guest would report or hint: the two highest orders."""
        free = 0
        for line in self.agent.run("cat /proc/buddyinfo").splitlines():
            words = line.split()
            free += (int(words[-1]) << 10) + (int(words[-2]) << 9)
        return free * 4096

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.agent.close()
        self.monitor.close()
        if self._ram is not None:
            self._ram.close()
