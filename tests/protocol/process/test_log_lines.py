"""Lines for people and for the journal."""

import logging
import os
from pathlib import Path

import pytest

from protocol.process.log_lines import is_journal, make_formatter


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
