"""Programs that a check starts: what they say, and that nothing of them is left."""

import signal
import subprocess
import time

import pytest

from protocol.errors import UsageError
from scripts.check.programs import SAID_BYTES, end_group, how_ended, last_line, said_by, words_of

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("command", ["", " ", "''", '"'])
def test_a_command_line_without_a_program_is_refused(command: str) -> None:
    with pytest.raises(UsageError, match=r"^--start: "):
        words_of(command, "--start")


def test_the_end_of_a_program_is_told_with_every_signal() -> None:
    assert how_ended(3) == "ended with status 3"
    assert how_ended(-signal.SIGSEGV) == "was ended by SIGSEGV"
    assert how_ended(-40) == "was ended by signal 40"


def test_what_a_program_said_last_is_a_line_that_a_terminal_can_show() -> None:
    assert last_line("one\ntwo \n\n") == "two"
    assert last_line("\x1b[2Jgone\r\0") == "\ufffd[2Jgone\ufffd\ufffd"
    assert last_line("") == ""


@pytest.mark.parametrize("program", ["sleep 600 & echo $!; wait", "sleep 600 & echo $!"])
def test_what_a_program_started_ends_with_it(program: str) -> None:
    """Also when the program itself has ended before."""
    process = subprocess.Popen(["sh", "-c", program], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    with process.stdout as stdout:
        assert stdout.readline().strip().isdigit()
        end_group(process)
        assert stdout.read() == b""  # which ends with the last process that has it


def test_a_question_that_does_not_end_has_an_answer_in_time() -> None:
    begin = time.monotonic()
    assert said_by(["sh", "-c", "echo this; sleep 600"], 0.1) == "this\n"
    assert time.monotonic() - begin < 60


def test_an_answer_without_end_is_cut_and_needs_no_encoding() -> None:
    assert SAID_BYTES <= len(said_by(["yes"], 60.0)) < 3 * SAID_BYTES
    assert said_by(["printf", r"\377"], 60.0) == "\ufffd"
