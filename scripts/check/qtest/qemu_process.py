"""A QEMU that is driven over its qtest socket: started, asked, and ended in every case."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final, TextIO

from host.qmp.qmp_client import QmpClient
from scripts.check.programs import end_group, last_line, said_by, signal_name
from scripts.check.verdict import TargetError

START_SECONDS: Final = 20.0
"""Seconds in which QEMU has to connect. A cold start from a slow disk takes several."""

ANSWER_SECONDS: Final = 10.0

ANSWER_BYTES: Final = 4096
"""Most bytes of a line of qtest's. Those that are asked for have less than a hundred."""

_COMPLAINTS_BYTES: Final = 65536
"""How much of the end of standard error is looked at for its last line."""

SUFFIX: Final = {1: "b", 2: "w", 4: "l", 8: "q"}
"""How qtest names accesses by their bytes: ``readl``, ``writeb``."""


class QemuProcess:
    """One QEMU with a balloon in a microvm, whose memory is the file that is open as ``memory``.

    Raises:
        TargetError: it cannot be started, is too old, or does not connect.
    """

    def __init__(self, qemu: str, memory: int, memory_bytes: int, properties: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="balloon-check-")
        place = Path(self._directory.name)
        self.qmp_path = place / "qmp"
        self._complaints = place / "stderr"
        self._stream: TextIO | None = None
        self._process: subprocess.Popen[bytes] | None = None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with listener:
                listener.bind(str(place / "qtest"))
                listener.listen(1)
                listener.settimeout(0.2)
                self._start([qemu, *_arguments(place, memory, memory_bytes, properties)], memory)
                self._connection = self._accept(listener)
        except BaseException:
            self.close()
            raise
        self._connection.settimeout(ANSWER_SECONDS)
        self._stream = self._connection.makefile("rw", encoding="ascii", newline="\n")

    def _start(self, argv: list[str], memory: int) -> None:
        setpriv = shutil.which("setpriv")
        follow = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        if shutil.which(argv[0]) is None:
            raise TargetError(f"{argv[0]}: no such program")
        with self._complaints.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*follow, *argv],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
                pass_fds=(memory,),
            )

    def _accept(self, listener: socket.socket) -> socket.socket:
        for _ in range(int(START_SECONDS / 0.2)):
            with contextlib.suppress(TimeoutError):
                return listener.accept()[0]
            if self.has_ended():
                raise TargetError(f"QEMU does not start: {self._last_words()}")
        raise TargetError(f"QEMU did not connect within {START_SECONDS:g} s")

    def has_ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process is None or self._process.poll() is not None

    def ask(self, line: str) -> list[str]:
        """Send a qtest command; return the words of the answer after OK.

        Raises:
            TargetError: QEMU has ended, does not answer, or says FAIL.
        """
        assert self._stream is not None
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
            end = time.monotonic() + ANSWER_SECONDS
            while time.monotonic() < end:
                answer = self._stream.readline(ANSWER_BYTES)
                if not answer:
                    raise TargetError(f"QEMU ended during {line!r}: {self._last_words()}")
                words = answer.split()
                if words[:1] == ["OK"]:
                    return words[1:]
                if words[:1] != ["IRQ"]:
                    raise TargetError(f"QEMU answered {line!r} with {answer.strip()[:200]!r}")
            raise TargetError(f"QEMU answers {line!r} with interrupts alone for {ANSWER_SECONDS:g} s")
        except (OSError, ValueError) as error:
            raise TargetError(f"QEMU does not answer {line!r}: {error}; {self._last_words()}") from error

    def read(self, address: int, width: int) -> int:
        """Return ``width`` bytes at a guest physical address.

        Raises:
            TargetError: QEMU has ended, or answers with no number.
        """
        line = f"read{SUFFIX[width]} {address:#x}"
        words = self.ask(line)
        try:
            return int(words[0], 16)
        except (IndexError, ValueError) as error:
            raise TargetError(f"QEMU answered {line!r} with {' '.join(['OK', *words])[:200]!r}") from error

    def write(self, address: int, width: int, value: int) -> None:
        """Store ``width`` bytes at a guest physical address."""
        self.ask(f"write{SUFFIX[width]} {address:#x} {value:#x}")

    def monitor(self, name: str, **arguments: object) -> Any:
        """Carry out a command of QEMU's monitor, and return what it returns.

        Raises:
            CommandError: QEMU answers with an error.
        """
        with QmpClient(self.qmp_path) as client:
            return client.command(name, **arguments)

    def _last_words(self) -> str:
        how = "it does not answer"
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = self._process.wait(2.0)
                how = f"exit status {status}" if status >= 0 else f"killed by {signal_name(-status)}"
        said = last_line(_tail(self._complaints)) if self._complaints.exists() else ""
        return f"{how}: {said or 'no message'}"

    def how_it_ended(self) -> str:
        """Return how the process, which has ended, did so, and its last message."""
        return f"QEMU ended: {self._last_words()}"

    def close(self) -> None:
        """End the process and remove its files."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            self._connection.close()
        if self._process is not None:
            end_group(self._process, 0.0)
        self._directory.cleanup()


def properties_of(qemu: str) -> str:
    """Return what QEMU says of the properties of its balloon, "" if it cannot be asked."""
    try:
        return said_by([qemu, "-M", "microvm", "-device", "virtio-balloon-device,help"], START_SECONDS)
    except OSError:
        return ""


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _COMPLAINTS_BYTES))
        return file.read(_COMPLAINTS_BYTES).decode(errors="replace")


def _arguments(place: Path, memory: int, memory_bytes: int, properties: str) -> list[str]:
    # Without a processor no firmware runs, which would use memory of its own. Packages may lack that accelerator: then
    # QEMU takes the next. The memory is no file in a directory: a disk's file system tells holes in its own way, and
    # /dev/shm of a container may be a disk's, or too small.
    backend = f"memory-backend-file,id=ram,size={memory_bytes},mem-path=/proc/self/fd/{memory},share=on"
    return [
        "-M", "microvm,memory-backend=ram",
        "-m", f"{memory_bytes >> 20}M",
        "-object", backend,
        "-object", "iothread,id=hints",
        "-global", "virtio-mmio.force-legacy=false",
        "-accel", "qtest", "-accel", "tcg",
        "-qtest", f"unix:{place / 'qtest'}",
        "-qtest-log", "none",
        "-qmp", f"unix:{place / 'qmp'},server=on,wait=off",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-device", f"virtio-balloon-device,{properties}",
    ]  # fmt: skip
