"""Lines from several processes in one recording."""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.recording import recording_relay
from host.recording.recording_relay import RecordingRelay, RelayedRecording
from protocol.process.recording_file import open_recording
from protocol.recording.lines import Cut, build_line, read_records
from protocol.recording.records import Header, Lost, Record, SessionEnd
from tests.harness.processes import DEADLINE, open_fds


@pytest.fixture(autouse=True)
def _closes_all() -> Iterator[None]:
    before = open_fds(os.getpid())
    yield
    assert open_fds(os.getpid()).keys() <= before.keys()


def end_of(session: int, reason: str = "") -> SessionEnd:
    return SessionEnd(t=1.0, session=session, reason=reason)


def recorded(path: Path) -> list[Record | Cut]:
    with path.open("rb") as file:
        return [each for each in read_records(file) if not isinstance(each, Header)]


def test_processes_record_their_own_sessions_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    file = open_recording(path, "a program")
    relay = RecordingRelay(file)
    first: set[int] = set()
    recordings = [RelayedRecording(relay.open(sessions)) for sessions in (first, {2})]
    first.add(1)
    recordings[0].write(end_of(1))
    for record in (
        end_of(1, "a lie"),
        end_of(2),
        Header(t=0.0, time=0.0, program="a lie"),
        Lost(t=0.0, session=0, count=1, full=True),
        Lost(t=0.0, session=0, count=2),
    ):
        recordings[1].write(record)
    for recording in recordings:
        recording.close()
    relay.close()
    file.close()
    found = recorded(path)
    assert len(found) == 3
    assert all(each in found for each in (end_of(1), end_of(2), Lost(t=0.0, session=0, count=2)))


def test_what_is_no_record_or_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    file = open_recording(path, "a program")
    relay = RecordingRelay(file)
    end = relay.open({1})
    line = build_line(end_of(1)).encode()
    for data in (b"{}\n[]\n\xff\n" + b"[" * 60_000 + b"\n", line[:7], line[7:], line[:-1]):
        os.write(end, data)
    os.close(end)
    relay.close()
    file.close()
    assert recorded(path) == [end_of(1)]


@pytest.mark.parametrize("data", [b"x" * 2000, build_line(end_of(1, "x" * 2000)).encode()], ids=["line", "file"])
def test_process_is_heard_no_more_at_a_limit(
    tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recording_relay, "LINE_MAX", 1000)
    path = tmp_path / "recording"
    file = open_recording(path, "a program", limit=2000)
    relay = RecordingRelay(file)
    end = relay.open({1})
    os.write(end, data)
    poll = select.poll()
    poll.register(end, 0)
    assert poll.poll(DEADLINE * 1000) == [(end, select.POLLERR)]
    os.close(end)
    relay.close()
    file.close()
    assert path.stat().st_size <= 2000
    assert capsys.readouterr().err.count("reached its limit") == (len(data) > 2000)


def test_recording_that_goes_on_has_one_header_and_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    for _ in range(2):
        file = open_recording(path, "a program", goes_on=True)
        file.write(end_of(1))
        file.close()
        with path.open("ab") as more:
            more.write(b'{"t":1')
    lines = path.read_text().splitlines()
    assert ["format" in line for line in lines] == [True, False, False, False]
    assert lines[1] == lines[2] == build_line(end_of(1)).strip()
