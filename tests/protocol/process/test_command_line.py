"""Errors of a command as the user sees them: one line and an exit status."""

import argparse
import contextlib
import errno
import io
import os
import sys

import pytest

from protocol.errors import BalloonError, UsageError
from protocol.process.command_line import (
    Parser,
    errors_of_standard_output,
    run_command,
    seconds_option,
    whole_number,
)

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


def test_help_fills_prose_and_leaves_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    example = f"  prog --socket-path {'/x' * 30}"
    prose = "exit status: 0 without a failure, 1 with one, 2 for\na wrong option"
    text = Parser(prog="prog", description="A word. " * 12, epilog=f"examples:\n{example}\n\n{prose}").format_help()
    assert example in text.splitlines()
    assert max(len(line) for line in text.splitlines() if line != example) <= 50
    assert "wrong option" in text
    assert "2 for\na wrong" not in text


@pytest.mark.parametrize("text", ["-3", "6", "2.5", "", "9" * 5000])
def test_whole_number_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not from -2 to 5|not a number"):
        whole_number(-2, 5)(text)


def test_whole_numbers_reach_from_the_least_to_the_most() -> None:
    assert [whole_number(-2, 5)(text) for text in ("-2", "5")] == [-2, 5]
    assert whole_number(1)("1000000000000") == 1_000_000_000_000
    with pytest.raises(argparse.ArgumentTypeError, match=r"^0 is not from 1 on$"):
        whole_number(1)("0")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "60.1", "soon"])
def test_seconds_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not above 0 and at most 60 seconds|not a number"):
        seconds_option(60)(text)
    assert seconds_option(60)("0.5") == 0.5


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
