"""A real Linux kernel with a shell that a test drives, and its memory as the host sees it."""

import contextlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Protocol

from guest.linux.kernel_log import kernel_warnings
from guest.linux.ram_file import RamFile
from protocol.units import MIB
from tests.harness.processes import ProgramProcess, until

BOOT_DEADLINE: Final = 90.0
"""Seconds to boot. The usual time is 1.5 s; the machine may be busy."""

MODULE: Final = "/run/control/virtio_balloon.ko"
INSMOD: Final = f"/run/control/busybox insmod {MODULE}"
RMMOD: Final = "/run/control/busybox rmmod virtio_balloon"
"""The balloon driver in and out, as the guest says it. A kernel that has it built in has no such file."""


class BackEnd(Protocol):
    """A process that listens for a front-end."""

    socket_path: Path


class LinuxGuest(ProgramProcess):
    """``balloon-linux`` with a shell as its command. A context manager: leaving it ends the shell and the guest."""

    def __init__(self, daemon: BackEnd, directory: Path, *, memory: int = 256 * MIB) -> None:
        """Boot a guest with ``memory`` bytes at ``daemon`` and wait until its shell reads commands.

        The kernel's log is ``kernel.log`` in ``directory``.
        """
        self.log = directory / "kernel.log"
        self.memory = memory
        options = ("--socket-path", str(daemon.socket_path), "--memory", f"{memory // MIB}M")
        reading, writing = os.pipe()
        super().__init__("guest.linux", *options, "--kernel-log", str(self.log), "--", "sh", stdin=reading)
        os.close(reading)
        self._stdin: IO[bytes] = os.fdopen(writing, "wb")
        self._numbers = itertools.count(1)
        self._taken = 0
        try:
            self.balloon_features = int(self.events.wait("balloon", deadline=BOOT_DEADLINE)["features"])
            self.kernel_pid = int(self.events.wait("booted", deadline=BOOT_DEADLINE)["pid"])
            self.ram = RamFile(self.kernel_pid, memory)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> "LinuxGuest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):  # a guest that is gone reads no last words
            self._stdin.close()
        self.ram.close()
        super().__exit__(kind, error, trace)

    def run(self, script: str, *, deadline: float = 60.0) -> str:
        """Run lines of shell in the guest, wait until they have ended, and return what they wrote to standard
        output."""
        number = next(self._numbers)
        self._stdin.write(f'{{ {script}\n}} </dev/null\necho "=== {number} $?"\n'.encode())
        self._stdin.flush()
        mark = f"=== {number} "
        until(
            lambda: mark in self._fresh() and self._fresh().endswith("\n"),
            f"the guest did {script!r}",
            deadline=deadline,
        )
        text, _, status = self._fresh().partition(mark)
        self._taken += len(self._fresh())
        assert status.strip() == "0", f"{script!r} ended with status {status.strip()}: {text}"
        return text

    def _fresh(self) -> str:
        return self.stdout()[self._taken :]

    def fill(self, size: int) -> None:
        """Write ``size`` bytes of zeros to a file in the guest's memory."""
        self.run(f"dd if=/dev/zero of=/tmp/fill bs=1M count={size // MIB} 2>/dev/null")

    def free(self) -> None:
        """Delete what :meth:`fill` wrote."""
        self.run("rm /tmp/fill")

    def meminfo(self) -> Mapping[str, int]:
        """Return the guest's own ``/proc/meminfo``, in bytes."""
        lines = (line.split() for line in self.run("cat /proc/meminfo").splitlines())
        return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}

    def free_blocks(self) -> int:
        """Return the bytes of the guest's free blocks of the highest order, which is what it reports."""
        lines = self.run("cat /proc/buddyinfo").splitlines()
        orders = len(lines[0].split()) - 4
        return sum(int(line.split()[-1]) << (orders - 1) for line in lines) * 4096

    def power_off(self, *, may_complain: bool = False) -> None:
        """End the shell, and with it the guest; check that neither wrote an error, unless that is expected."""
        self._stdin.close()
        assert self.wait() == 0
        if may_complain:
            self.forget_stderr()
        else:
            assert kernel_warnings(self.log.read_text(encoding="utf-8", errors="replace")) == []
