"""A report's file that is there whole or not at all, and errors that name it."""

import contextlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from protocol.errors import BalloonError
from protocol.process.command_line import reason


class _NamedStream(io.TextIOWrapper):
    """A text stream whose errors say which option and file they are about."""

    def __init__(self, fd: int, what: str) -> None:
        super().__init__(open(fd, "wb"), encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  (closed with the stream)
        self._what = what

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise BalloonError(f"{self._what}: {error.strerror}") from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise BalloonError(f"{self._what}: {error.strerror}") from error


@contextmanager
def report_file(path: str | os.PathLike[str], option: str) -> Iterator[TextIO]:
    """Give the stream for a report. What is written replaces the file at ``path`` when the context is left in order.

    Otherwise, a signal included, the file stays as it was. A path that is no ordinary file, such as a pipe, or a file
    in a directory that takes no other, is written to directly.

    Raises:
        BalloonError: it cannot be written; the message begins with ``option``. Before the context is entered, for a
            wrong path, and from every write.
    """
    what = f"{option} {os.fspath(path)}"
    place = os.path.realpath(path)
    try:
        fd, beside = _opened(place)
    except OSError as error:
        raise BalloonError(f"{what}: {reason(_unnamed(error))}") from error
    stream = _NamedStream(fd, what)
    try:
        yield stream
        stream.flush()
        if beside is not None:
            os.replace(beside, place)
            beside = None
    finally:
        with contextlib.suppress(BalloonError, OSError):  # it was told before
            stream.close()
        if beside is not None:
            os.unlink(beside)


def _opened(place: str) -> tuple[int, str | None]:
    # A descriptor, and the path of the file that is to replace the one at `place`.
    mode = _mode_of(place)
    if mode is None or stat.S_ISREG(mode):
        try:
            fd, beside = tempfile.mkstemp(dir=os.path.dirname(place), prefix=f".{os.path.basename(place)}.")
        except PermissionError:
            pass
        else:
            os.fchmod(fd, _new_mode() if mode is None else stat.S_IMODE(mode))
            return fd, beside
    return os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666), None


def _mode_of(place: str) -> int | None:
    try:
        return os.stat(place).st_mode
    except FileNotFoundError:
        return None


def _new_mode() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return 0o666 & ~mask


def _unnamed(error: OSError) -> OSError:
    return OSError(error.errno, error.strerror)
