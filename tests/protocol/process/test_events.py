"""The event stream: one JSON object a line, at once, and readers that stall or leave."""

import errno
import io
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import protocol.process.line_writer
from protocol.errors import BalloonError
from protocol.process.events import EventLog, open_event_log


class FullDisk(io.StringIO):
    """A stream that accepts ``capacity`` writes and then behaves like a full disk."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def write(self, text: str) -> int:
        if self.capacity == 0:
            raise OSError(28, "No space left on device")
        self.capacity -= 1
        return super().write(text)


class BrokenClose(io.StringIO):
    """A stream whose last flush, the one in ``close``, fails."""

    _has_failed = False

    def close(self) -> None:
        if self._has_failed:  # by the finalizer, whose errors Python 3.13 tells
            super().close()
            return
        self._has_failed = True
        raise OSError(5, "Input/output error")


def follow(path: Path, lines: int) -> list[str]:
    """Return the first ``lines`` lines of a file as soon as they are there."""
    end = time.monotonic() + 10
    while (text := path.read_text(encoding="ascii")).count("\n") < lines:
        assert time.monotonic() < end, f"not {lines} lines: {text}"
        time.sleep(0.001)
    return text.splitlines()[:lines]


def clock() -> float:
    """A clock that stands still."""
    return 12.3456789


def test_event_is_one_line_with_time_name_and_fields() -> None:
    stream = io.StringIO()
    EventLog(stream, clock, wall_clock=lambda: 1e9).emit("report", vm=1, bytes=4096, note="a\nb")
    assert stream.getvalue().count("\n") == 1
    assert list(json.loads(stream.getvalue()).items()) == [
        ("t", 12.345679),
        ("time", "2001-09-09T01:46:40.000000Z"),
        ("event", "report"),
        ("vm", 1),
        ("bytes", 4096),
        ("note", "a\nb"),
    ]


def test_time_is_the_instant_of_t_on_the_wall_clock() -> None:
    """Also when the event is written later than it happened."""
    stream = io.StringIO()
    log = EventLog(stream, lambda: 500.0, wall_clock=lambda: 1_000_000_000.5)
    log.emit("report", t=498.25)
    event = json.loads(stream.getvalue())
    assert (event["t"], event["time"]) == (498.25, "2001-09-09T01:46:38.750000Z")


def test_log_without_a_stream_swallows_everything() -> None:
    log = EventLog(None, clock)
    log.emit("report", bytes=1)
    log.close()
    assert log.broken is None


def test_log_falls_silent_when_the_disk_is_full() -> None:
    stream = FullDisk(capacity=1)
    log = EventLog(stream, clock)
    log.emit("first")
    log.emit("second")
    assert log.broken is not None
    assert "No space left" in log.broken
    stream.capacity = 10
    log.emit("third")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["first"]


def test_log_falls_silent_when_the_stream_was_closed_under_it() -> None:
    stream = io.StringIO()
    log = EventLog(stream, clock)
    stream.close()
    log.emit("late")
    assert log.broken is not None


def test_event_log_closed_twice_ignores_later_events(tmp_path: Path) -> None:
    log = open_event_log(str(tmp_path / "events"), clock)
    log.emit("one")
    log.close()
    log.close()
    log.emit("two")
    assert (tmp_path / "events").read_text().count("\n") == 1
    assert log.broken is None


def test_error_at_closing_is_kept_not_raised() -> None:
    log = EventLog(BrokenClose(), clock)
    log.close()
    assert log.broken is not None
    assert "Input/output error" in log.broken


def test_reader_sees_an_event_while_the_log_is_open_and_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text('{"event": "before"}\n')
    log = open_event_log(str(path), clock)
    log.emit("now")
    seen = [json.loads(line)["event"] for line in follow(path, lines=2)]
    log.close()
    assert seen == ["before", "now"]


def test_dash_is_standard_output_and_stays_open(capsys: pytest.CaptureFixture[str]) -> None:
    log = open_event_log("-", clock)
    log.emit("listening")
    log.close()
    print("after")
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first)["event"] == "listening"
    assert second == "after"


def test_missing_path_discards_events() -> None:
    log = open_event_log(None, clock)
    log.emit("listening")
    assert log.broken is None


def test_path_that_cannot_be_opened_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(BalloonError, match=r"--events .*missing/events: No such file or directory"):
        open_event_log(str(tmp_path / "missing" / "events"), clock)


def read_all(fd: int) -> list[dict[str, Any]]:
    """Return all events of a pipe, up to its end."""
    with os.fdopen(fd, "rb") as pipe:
        return [json.loads(line) for line in pipe]


def test_stalled_reader_delays_nothing_and_gets_a_count_of_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol.process.line_writer, "WAITING_MAX", 1 << 16)
    reading, writing = os.pipe()
    log = open_event_log(f"/dev/fd/{writing}", clock)
    os.close(writing)
    emitted = 20_000  # far more than the pipe and the queue hold
    for number in range(emitted):
        log.emit("number", value=number)
    found: list[list[dict[str, Any]]] = []
    reader = threading.Thread(target=lambda: found.append(read_all(reading)))
    reader.start()
    log.close()
    reader.join()
    assert log.broken is None
    events = found[0]
    assert events[-1]["event"] == "events_lost"
    # Each gap is reported at its place.
    expected = 0
    for event in events:
        if event["event"] == "events_lost":
            expected += event["count"]
        else:
            assert event["value"] == expected
            expected += 1
    assert expected == emitted


def test_close_waits_briefly_for_a_stalled_reader(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(protocol.process.line_writer, "CLOSE_TIMEOUT", 0.01)
    reading, writing = os.pipe()
    log = open_event_log(f"/dev/fd/{writing}", clock)
    os.close(writing)
    for number in range(5000):
        log.emit("number", value=number)
    log.close()
    assert log.broken == "the reader does not take them"
    assert capsys.readouterr().err == "events: the reader does not take them: the last ones are missing\n"
    os.close(reading)  # which ends the thread
    for thread in threading.enumerate():
        if thread.name == "events":
            thread.join()


def test_burst_is_written_whole_before_the_end(tmp_path: Path) -> None:
    log = open_event_log(str(tmp_path / "events"), clock)
    for number in range(1000):
        log.emit("number", value=number)
    log.close()
    assert [json.loads(line)["value"] for line in follow(tmp_path / "events", 1000)] == list(range(1000))


def test_reader_that_closes_its_pipe_is_not_a_fault(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    log = open_event_log(f"/dev/fd/{writing}", clock)
    os.close(writing)
    os.close(reading)
    log.emit("one")
    log.close()
    log.emit("two")
    assert log.broken == "Broken pipe"
    assert capsys.readouterr().err == ""


def next_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Wait for text on standard error and return it."""
    end = time.monotonic() + 10
    while not (text := capsys.readouterr().err):
        assert time.monotonic() < end
        time.sleep(0.001)
    return text


def test_full_disk_below_a_file_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = open_event_log("/dev/full", clock)
    log.emit("one")
    assert next_error(capsys) == "events: No space left on device: they wait for room\n"
    log.emit("two")
    log.close()
    assert log.broken is not None
    assert capsys.readouterr().err == "events: No space left on device: no more are written\n"


def test_full_non_blocking_pipe_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    log = EventLog.to_file(io.FileIO(writing, "w"), clock)
    for number in range(5000):
        log.emit("number", value=number)
    found: list[list[dict[str, Any]]] = []
    reader = threading.Thread(target=lambda: found.append(read_all(reading)))
    reader.start()
    log.close()
    reader.join()
    assert [event["value"] for event in found[0]] == list(range(5000))
    assert log.broken is None


class SmallDisk(io.FileIO):
    """A file that has room for ``room`` bytes more, and takes a part of a write that is longer."""

    room = 0

    def write(self, data: Any) -> int:
        taken = bytes(data)[: self.room]
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(taken)
        return super().write(taken)


def test_full_disk_loses_no_half_line_and_writing_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(protocol.process.line_writer, "RETRY_INTERVAL", 0.001)
    monkeypatch.setattr(protocol.process.line_writer, "WAITING_MAX", 1 << 12)
    path = tmp_path / "events"
    disk = SmallDisk(path, "a")
    disk.room = 250
    log = EventLog.to_file(disk, clock)
    log.emit("number", value=0)
    follow(path, 1)
    for number in range(1, 200):
        log.emit("number", value=number)
    wait_until(lambda: "they wait for room" in capsys.readouterr().err)
    before = path.read_text(encoding="ascii")
    assert before.endswith("\n")
    disk.room = 1 << 20
    log.close()
    events = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    lost = [event["count"] for event in events if event["event"] == "events_lost"]
    numbers = [event["value"] for event in events if event["event"] == "number"]
    assert lost
    assert numbers == sorted(numbers)
    assert len(numbers) + sum(lost) == 200
    assert log.broken is None


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_reopened_log_writes_to_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "events"
    log = open_event_log(str(path), clock)
    log.emit("one")
    follow(path, 1)
    path.rename(tmp_path / "old")
    log.reopen()
    log.emit("two")
    follow(path, 1)
    log.close()
    assert (tmp_path / "old").read_text().count("\n") == 1
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["two"]


def test_reopening_what_cannot_be_opened_keeps_the_old_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "events"
    log = open_event_log(str(path), clock)
    path.rename(tmp_path / "old")
    path.mkdir()
    log.reopen()
    log.emit("one")
    log.close()
    assert (tmp_path / "old").read_text().count("\n") == 1
    assert capsys.readouterr().err == f"events: {path}: Is a directory: not reopened\n"


def test_log_that_has_stopped_goes_on_when_it_is_reopened(tmp_path: Path) -> None:
    path = tmp_path / "events"
    reading, writing = os.pipe()
    log = open_event_log(f"/dev/fd/{writing}", clock)
    os.close(writing)
    os.close(reading)
    log.emit("none")
    wait_until(lambda: log.broken is not None)
    log._path = str(path)
    log.reopen()
    log.emit("one")
    log.close()
    assert log.broken is None
    assert path.read_text().count("\n") == 1


def test_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("", encoding="ascii")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(BalloonError, match=r"--events .*/link: is a symbolic link, which is not followed"):
        open_event_log(str(tmp_path / "link"), clock)


def test_fifo_without_a_reader_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    log = open_event_log(str(path), clock)
    log.emit("one")
    with path.open(encoding="ascii") as reader:
        assert json.loads(reader.readline())["event"] == "one"
    log.close()
    assert log.broken is None


def test_thread_starts_with_the_first_event(tmp_path: Path) -> None:
    before = threading.active_count()
    log = open_event_log(str(tmp_path / "events"), clock)
    assert threading.active_count() == before
    log.close()
    assert (tmp_path / "events").read_bytes() == b""
