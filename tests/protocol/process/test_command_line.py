"""Errors of a command as the user sees them: one line and an exit status."""

import contextlib
import errno
import io
import os
import sys

import pytest

from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import errors_of_standard_output, run_command

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UsageError("no such thing"), 2, "prog: no such thing\n"),
        (BalloonError("it broke"), 1, "prog: it broke\n"),
        (FULL, 1, "prog: No space left on device\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 1, "prog: /x: No such file\n"),
        (OSError("AF_UNIX path too long"), 1, "prog: AF_UNIX path too long\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_error_is_one_line_and_a_status(
    error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.process.command_line.give_up_standard_output", lambda: None)  # the test run's own

    def fail() -> int:
        raise error

    assert run_command("prog", fail) == status
    assert capsys.readouterr().err == text


def test_full_standard_output_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.process.command_line.give_up_standard_output", lambda: None)

    def fail(error: OSError) -> int:
        with errors_of_standard_output():
            raise error

    assert run_command("prog", lambda: fail(FULL)) == 1
    assert run_command("prog", lambda: fail(BrokenPipeError(errno.EPIPE, "Broken pipe"))) == 141
    assert capsys.readouterr().err == "prog: standard output: No space left on device\n"


def test_closed_standard_error_is_no_standard_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)

    def command() -> int:
        print("progress", file=sys.stderr)
        return 0

    assert run_command("x", command) == 0
    sys.stderr.close()  # what stood in for it
    assert capsys.readouterr().out == ""


def test_full_standard_error_leaves_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> int:
        raise UsageError("no such thing")

    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert run_command("x", command) == 2
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def test_what_is_no_text_is_written_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8", "strict"))

    def command() -> int:
        print(os.fsdecode(b"/tmp/\xff"))
        return 0

    assert run_command("x", command) == 0
    assert written.getvalue() == b"/tmp/\\udcff\n"
