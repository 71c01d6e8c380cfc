"""Lines for people and for the journal."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from protocol.process.command_line import Parser, run_command
from protocol.process.log_lines import is_journal, make_formatter
from protocol.process.standard_error import queued_standard_error


def record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("host", level, __file__, 1, text, None, None)


@pytest.mark.parametrize(
    ("level", "priority"), [(logging.ERROR, 3), (logging.CRITICAL, 3), (logging.WARNING, 4), (logging.INFO, 6), (10, 7)]
)
def test_journal_has_the_priority_of_each_line(level: int, priority: int) -> None:
    formatter = make_formatter("daemon", "auto", journal=True)
    assert formatter.format(record(level, "one\ntwo")) == f"<{priority}>one\n<{priority}>two"


def test_people_have_the_program() -> None:
    for formatter in (make_formatter("daemon", "auto", journal=False), make_formatter("daemon", "text", journal=True)):
        assert formatter.format(record(logging.INFO, "one")) == "daemon: one"


def test_journal_is_known_by_its_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        named = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(stream, named)
        assert not is_journal(stream, {})
        assert not is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
    assert not is_journal(stream, named)
    assert not is_journal(None, named)


def fail() -> int:
    raise BalloonError("no such socket\nnor that one")


def refuse() -> int:
    with pytest.raises(SystemExit):
        Parser(prog="daemon", description="", epilog="").parse_args(["--unknown"])
    return 2


def run_queued() -> int:
    with queued_standard_error("daemon"):
        return run_command("daemon", fail)


@pytest.mark.parametrize(
    ("failing", "lines"),
    [
        (lambda: run_command("daemon", fail), ["no such socket", "nor that one"]),
        (run_queued, ["no such socket", "nor that one"]),
        (refuse, ["unrecognized arguments: --unknown (see daemon --help)"]),
    ],
)
def test_why_a_program_ends_is_an_error_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: Callable[[], int], lines: list[str]
) -> None:
    said = tmp_path / "log"
    for begin, reader in ("daemon: ", ""), ("<3>", "JOURNAL_STREAM"):
        with said.open("w") as stream:
            status = os.fstat(stream.fileno())
            monkeypatch.setenv(reader or "UNUSED", f"{status.st_dev}:{status.st_ino}")
            monkeypatch.setattr(sys, "stderr", stream)
            failing()
        assert said.read_text().splitlines() == [begin + line for line in lines]
