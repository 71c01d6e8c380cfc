"""The event stream: one JSON object a line, at once, and a reader that leaves is nobody's problem."""

import io
import json
from pathlib import Path

import pytest

from protocol.errors import UsageError
from protocol.events import EventLog, open_event_log


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

    def close(self) -> None:
        raise OSError(5, "Input/output error")


def clock() -> float:
    """A clock that stands still."""
    return 12.3456789


def test_an_event_is_one_line_with_time_name_and_fields() -> None:
    stream = io.StringIO()
    EventLog(stream, clock).emit("report", vm=1, bytes=4096, note="a\nb")
    assert stream.getvalue().count("\n") == 1
    assert list(json.loads(stream.getvalue()).items()) == [
        ("t", 12.345679),
        ("event", "report"),
        ("vm", 1),
        ("bytes", 4096),
        ("note", "a\nb"),
    ]


def test_a_log_without_a_stream_swallows_everything() -> None:
    log = EventLog(None, clock)
    log.emit("report", bytes=1)
    log.close()
    assert log.broken is None


def test_the_log_falls_silent_when_the_disk_is_full() -> None:
    stream = FullDisk(capacity=1)
    log = EventLog(stream, clock)
    log.emit("first")
    log.emit("second")
    assert log.broken is not None
    assert "No space left" in log.broken
    stream.capacity = 10
    log.emit("third")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["first"]


def test_the_log_falls_silent_when_the_stream_was_closed_under_it() -> None:
    stream = io.StringIO()
    log = EventLog(stream, clock)
    stream.close()
    log.emit("late")
    assert log.broken is not None


def test_closing_twice_and_emitting_afterwards_is_harmless(tmp_path: Path) -> None:
    log = open_event_log(str(tmp_path / "events"), clock)
    log.emit("one")
    log.close()
    log.close()
    log.emit("two")
    assert (tmp_path / "events").read_text().count("\n") == 1
    assert log.broken is None


def test_an_error_at_closing_is_kept_not_raised() -> None:
    log = EventLog(BrokenClose(), clock)
    log.close()
    assert log.broken is not None
    assert "Input/output error" in log.broken


def test_a_reader_sees_an_event_while_the_log_is_open_and_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text('{"event": "before"}\n')
    log = open_event_log(str(path), clock)
    log.emit("now")
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["before", "now"]
    log.close()


def test_a_dash_is_standard_output_and_stays_open(capsys: pytest.CaptureFixture[str]) -> None:
    log = open_event_log("-", clock)
    log.emit("listening")
    log.close()
    print("after")
    assert capsys.readouterr().out == '{"t": 12.345679, "event": "listening"}\nafter\n'


def test_no_path_is_no_events() -> None:
    log = open_event_log(None, clock)
    log.emit("listening")
    assert log.broken is None


def test_a_path_that_cannot_be_opened_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--events .*missing/events: No such file or directory"):
        open_event_log(str(tmp_path / "missing" / "events"), clock)
