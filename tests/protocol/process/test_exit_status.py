"""How a process has ended, in words."""

import signal

import pytest

from protocol.process.exit_status import how_ended


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exit status 0"),
        (3 << 8, "exit status 3"),
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGSEGV | 0x80, "SIGSEGV"),
        (signal.SIGRTMIN, "SIGRTMIN"),
        (signal.SIGRTMIN + 3, "SIGRTMIN+3"),
        (32, "signal 32"),
    ],
)
def test_each_status_has_words(status: int, words: str) -> None:
    assert how_ended(status) == words
