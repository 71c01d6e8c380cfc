"""Log lines for the system's log daemon, by the datagram socket at ``/dev/log`` (syslog(3), RFC 3164).

The journal of systemd listens there too. A line that the log daemon does not take at once is lost, and counted: it must
not hold up what logs.
"""

import errno
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError
from protocol.process.log_lines import priority

DEV_LOG: Final = Path("/dev/log")

LINE_MAX: Final = 8 << 10
"""Bytes of a line; what is longer is cut. glibc and rsyslog take so many."""

_DAEMON: Final = 3
"""The facility LOG_DAEMON."""


class SyslogHandler(logging.Handler):
    """Sends records to the socket at ``path``, each line of one with its priority."""

    def __init__(self, program: str, path: Path = DEV_LOG) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._program = program
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._sending = threading.Lock()
        self.lost = 0
        """Lines that were not taken since the last one that was."""

    def check(self) -> None:
        """Raise OSError if there is no log daemon."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(self._path)

    def emit(self, record: logging.LogRecord) -> None:
        """Send the lines of a record."""
        level = priority(record.levelno)
        with self._sending:
            for line in self.format(record).split("\n"):
                self._send(level, line)

    def _send(self, level: int, line: str) -> None:
        if self.lost and self._try(priority(logging.WARNING), f"{self.lost} lines were lost"):
            self.lost = 0
        if not self._try(level, line):
            self.lost += 1

    def _try(self, level: int, line: str) -> bool:
        stamp = time.strftime("%b %e %H:%M:%S")
        text = f"<{_DAEMON << 3 | level}>{stamp} {self._program}[{os.getpid()}]: {line}"
        try:
            self._socket.sendto(text.encode(errors="backslashreplace")[:LINE_MAX], self._path)
        except OSError:  # full, or it is being restarted
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def log_to_syslog(program: str, path: Path = DEV_LOG) -> None:
    """Log to the system's log from now on, instead of standard error. The level stays as it is.

    Raises:
        BalloonError: there is no log daemon.
    """
    handler = SyslogHandler(program, path)
    try:
        handler.check()
    except OSError as error:
        handler.close()
        raise BalloonError(f"--syslog: {path}: {os.strerror(error.errno or errno.EIO)}") from error
    logging.basicConfig(handlers=[handler], force=True)
