"""The lines that a service logs on standard error, for people or for the systemd journal.

The journal takes the level of a line from ``<N>`` at its begin (sd-daemon(3), syslog(3)). systemd names the pipe or
socket that it reads by device and inode in ``$JOURNAL_STREAM`` (systemd.exec(5)).
"""

import logging
import os
import sys
from collections.abc import Mapping
from typing import Final, TextIO

LEVELS: Final = {
    "off": logging.CRITICAL + 1,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
"""Levels by name, as systemd and QEMU write them."""

SYNONYMS: Final = {"warn": "warning", "trace": "debug"}
"""What virtiofsd calls them."""

FORMATS: Final = ("auto", "text", "journal")
"""``auto`` is ``journal`` where the journal reads standard error, and ``text`` elsewhere."""

_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG: Final = 7


def priority(level: int) -> int:
    """Return the priority (syslog(3)) of a record of this level."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG)


class JournalFormatter(logging.Formatter):
    """Begins each line of a record, those of a traceback too, with the priority of its level."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of ``record``."""
        return "\n".join(f"<{priority(record.levelno)}>{line}" for line in super().format(record).split("\n"))


def is_journal(stream: TextIO | None, environment: Mapping[str, str]) -> bool:
    """Return whether the journal reads ``stream``."""
    try:
        assert stream is not None
        status = os.fstat(stream.fileno())
    except (AssertionError, OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def error_line(text: str, program: str = "") -> str:
    """Return ``text`` as a line that tells of an error on what ``sys.stderr`` is now: with its priority for the
    journal, which adds the program's name itself, else after ``program``."""
    if is_journal(sys.stderr, os.environ):
        return f"<{priority(logging.ERROR)}>{text}"
    return f"{program}: {text}" if program else text


def make_formatter(program: str, log_format: str, *, journal: bool) -> logging.Formatter:
    """Return what writes the lines of ``program`` in one of :data:`FORMATS`. ``journal`` is whether the journal reads
    them. It adds the program's name itself."""
    if log_format == "journal" or (log_format == "auto" and journal):
        return JournalFormatter("%(message)s")
    return logging.Formatter(f"{program}: %(message)s")


def log_to_standard_error(program: str, log_format: str, *, journal: bool) -> None:
    """Log on what ``sys.stderr`` is now. The level stays as it is."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(make_formatter(program, log_format, journal=journal))
    logging.basicConfig(handlers=[handler], force=True)
