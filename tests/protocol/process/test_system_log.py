"""Log lines at /dev/log."""

import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from protocol.process.system_log import LINE_MAX, SyslogHandler, log_to_syslog


def record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("host", level, __file__, 1, text, None, None)


def taken(daemon: socket.socket) -> bytes:
    """Return the next line, none if there is no more."""
    try:
        return daemon.recv(1 << 16)
    except BlockingIOError:
        return b""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "log"))
        listener.setblocking(False)
        yield listener


def test_lines_have_facility_priority_and_process(tmp_path: Path, daemon: socket.socket) -> None:
    handler = SyslogHandler("balloon", tmp_path / "log")
    handler.emit(record(logging.WARNING, "one\ntwo"))
    handler.emit(record(logging.DEBUG, "x" * 2 * LINE_MAX))
    lines = [daemon.recv(1 << 16) for _ in range(3)]
    form = rb"<%d>[A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d balloon\[\d+\]: %s"
    assert re.fullmatch(form % (3 << 3 | 4, b"one"), lines[0])
    assert re.fullmatch(form % (3 << 3 | 4, b"two"), lines[1])
    assert re.fullmatch(form % (3 << 3 | 7, b"x+"), lines[2])
    assert len(lines[2]) == LINE_MAX
    handler.close()


def test_log_daemon_that_stalls_holds_up_nothing(tmp_path: Path, daemon: socket.socket) -> None:
    handler = SyslogHandler("balloon", tmp_path / "log")
    while not handler.lost:
        handler.emit(record(logging.INFO, "much"))
    for _ in range(2):
        daemon.recv(1 << 16)
    handler.emit(record(logging.INFO, "last"))
    lines = list(iter(lambda: taken(daemon), b""))
    assert [line.partition(b": ")[2] for line in lines[-2:]] == [b"1 lines were lost", b"last"]
    handler.close()


def test_system_without_a_log_is_said(tmp_path: Path) -> None:
    with pytest.raises(BalloonError, match=r"^--syslog: .*/log: No such file or directory$"):
        log_to_syslog("balloon", tmp_path / "log")
