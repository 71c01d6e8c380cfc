"""Standard error that a thread writes: whatever prints is not delayed by the reader, and lost lines are counted."""

import logging
import os
import sys
import threading
from collections.abc import Iterator

import pytest

import protocol.process.standard_error
from protocol.process.standard_error import QueuedText, queued_standard_error
from tests.harness.processes import DEADLINE


class Pipe:
    """A pipe that is full from the start: what is written to it waits until the test reads."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        self.filled = 0
        try:
            while True:
                self.filled += os.write(self.writing, bytes(4096))
        except BlockingIOError:
            os.set_blocking(self.writing, True)

    def make_room(self) -> None:
        """Take what filled the pipe."""
        left = self.filled
        while left:
            left -= len(os.read(self.reading, left))

    def read_on_thread(self) -> tuple[threading.Thread, list[bytes]]:
        """Read to the end of the pipe from now on."""
        parts: list[bytes] = []

        def read() -> None:
            while part := os.read(self.reading, 1 << 16):
                parts.append(part)

        thread = threading.Thread(target=read)
        thread.start()
        return thread, parts

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reading)
        os.close(self.writing)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "standard error"]


def test_lines_come_whole_however_they_are_written(pipe: Pipe) -> None:
    pipe.make_room()
    text = QueuedText(pipe.writing, "program")
    print("one", 1, file=text)
    text.write("two\nthr")
    text.write("ee\nnot ASCII: \u00e9, \udc80\nunfinished")
    assert text.drain(DEADLINE)
    assert os.read(pipe.reading, 4096) == b"one 1\ntwo\nthree\nnot ASCII: \xc3\xa9, \\udc80\nunfinished"


def test_stalled_reader_delays_nothing_and_gets_a_count_of_what_it_missed(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol.process.standard_error, "WAITING_MAX", 1 << 12)
    text = QueuedText(pipe.writing, "program")
    written = 2000  # more than the queue holds
    for number in range(written):
        print(f"line {number:4}", file=text)
    pipe.make_room()
    reader, parts = pipe.read_on_thread()
    assert text.drain(DEADLINE)
    os.close(pipe.writing)
    reader.join(DEADLINE)
    pipe.writing = os.open(os.devnull, os.O_WRONLY)
    lines = b"".join(parts).decode().splitlines()
    following = losses = 0  # the number that the next line has
    for line in lines:
        if line.endswith(" lines of standard error were lost"):
            following += int(line.split()[1])
            losses += 1
        else:
            assert line == f"line {following:4}"
            following += 1
    assert following == written
    assert losses in (1, 2)  # a writer that starts late empties the queue once more


def test_end_waits_briefly_for_a_stalled_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol.process.standard_error, "CLOSE_TIMEOUT", 0.01)
    monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(pipe.writing), "w"))
    original = sys.stderr
    with queued_standard_error("program"):
        print("never read", file=sys.stderr)
    assert sys.stderr is not original
    print("at the interpreter's end", file=sys.stderr)  # a traceback, for example, which must not block
    sys.stderr.flush()
    pipe.make_room()
    for thread in writers():
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert os.read(pipe.reading, 4096).startswith(b"never read\n")
    original.close()


def test_block_takes_the_log_and_leaves_standard_error_as_it_was(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.make_room()
    original = os.fdopen(os.dup(pipe.writing), "w")
    monkeypatch.setattr(sys, "stderr", original)
    with queued_standard_error("program"):
        handler = logging.StreamHandler()
        handler.emit(logging.makeLogRecord({"msg": "from the log"}))
    assert sys.stderr is original
    print("directly", file=original, flush=True)
    assert os.read(pipe.reading, 4096) == b"from the log\ndirectly\n"
    original.close()


def test_reader_that_has_gone_delays_nothing(pipe: Pipe) -> None:
    os.close(pipe.reading)
    text = QueuedText(pipe.writing, "program")
    print("lost", file=text)
    assert text.drain(DEADLINE)
    print("lost too", file=text)
    pipe.reading = os.open(os.devnull, os.O_RDONLY)


@pytest.mark.parametrize("absent", [True, False])
def test_standard_error_stays_as_it_is_where_no_thread_can_write_it(
    absent: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if absent:
        monkeypatch.setattr(sys, "stderr", None)
    before = sys.stderr
    with queued_standard_error("program"):
        assert sys.stderr is before
        print("printed", file=sys.stderr)
    assert absent or capsys.readouterr().err == "printed\n"


def test_limit_of_threads_leaves_standard_error_as_it_is(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    original = os.fdopen(os.dup(pipe.writing), "w")
    monkeypatch.setattr(sys, "stderr", original)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with queued_standard_error("program"):
        assert sys.stderr is original
    original.close()
