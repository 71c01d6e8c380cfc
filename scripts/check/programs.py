"""Programs that others wrote, which a check starts: their command lines, what they say, and their end."""

import contextlib
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Final

from protocol.errors import UsageError
from scripts.check.machine.deadline import DEADLINE

SAID_BYTES: Final = 1 << 20
"""Most that is read of what a program says when it is asked for something."""

LINE_CHARACTERS: Final = 300
"""Most characters of a line of a program that a message quotes."""


def words_of(command: str, option: str) -> list[str]:
    """Return the words of a command line, quoted as in a shell, that ``option`` was given.

    Raises:
        UsageError: it names no program, or a quotation mark is missing.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{option}: {command!r} is no command line: {error}") from error
    if not words or not words[0]:
        raise UsageError(f"{option}: {command!r} names no program")
    return words


def how_ended(status: int) -> str:
    """Say how a program ended whose exit status is ``status``, negative for the signal that ended it."""
    return f"was ended by {signal_name(-status)}" if status < 0 else f"ended with status {status}"


def last_line(said: str) -> str:
    """Return the last line of what a program ``said`` that is not empty, fit for a message: in one piece and without
    what moves a terminal's cursor."""
    line = next((line.strip() for line in reversed(said.split("\n")) if line.strip()), "")
    return "".join(char if char.isprintable() else "\ufffd" for char in line[:LINE_CHARACTERS])


def signal_name(number: int) -> str:
    """Return the name of a signal. Most of the real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def end_group(process: "subprocess.Popen[bytes]", seconds: float = DEADLINE) -> None:
    """End a program that leads a process group, and all that it started there and left: SIGTERM, ``seconds`` later
    SIGKILL. What is left when the program itself has ended is killed at once."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def said_by(words: Sequence[str], seconds: float) -> str:
    """Return the standard output of a program, which has ``seconds`` to end; what it says later is left out, as is all
    beyond :data:`SAID_BYTES`.

    Raises:
        OSError: it cannot be started.
    """
    end = time.monotonic() + seconds
    data = b""
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            fd = process.stdout.fileno()
            while len(data) < SAID_BYTES and select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
                piece = os.read(fd, SAID_BYTES)
                if not piece:
                    break
                data += piece
        finally:
            end_group(process, 0.0)  # it may have closed its output and go on, or have children that do
    return data.decode(errors="replace")
