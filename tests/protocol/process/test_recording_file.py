"""The file of a recording: appended to, bounded, and never a reason to wait."""

from io import FileIO
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from protocol.process.recording_file import RecordingFile, open_recording
from protocol.recording.lines import Cut, read_records
from protocol.recording.records import Header, Lost, Record, Signal


def contents(path: Path) -> list[Record | Cut]:
    with path.open("rb") as file:
        return list(read_records(file))


def kick(ring: int) -> Signal:
    return Signal(t=1.5, session=1, ring=ring, what="kick")


def test_records_are_in_the_file_after_close(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    recording = open_recording(path, "a program")
    for ring in range(100):
        recording.write(kick(ring))
    recording.close()
    recording.close()
    recording.write(kick(5))
    header, *records = contents(path)
    assert isinstance(header, Header)
    assert header.program == "a program"
    assert records == [kick(ring) for ring in range(100)]


def test_second_run_appends_also_after_one_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    open_recording(path, "first").close()
    with path.open("ab") as file:
        file.write(b'{"t":1.5,"sess')
    open_recording(path, "second").close()
    first, cut, second = contents(path)
    assert isinstance(first, Header)
    assert cut == Cut(2)
    assert isinstance(second, Header)
    assert (first.program, second.program) == ("first", "second")


def test_recording_stops_at_its_limit_with_a_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recording"
    recording = open_recording(path, "a program", limit=2000)
    for ring in range(1000):
        recording.write(kick(ring))
    recording.close()
    assert path.stat().st_size <= 2000
    _, *kicks, mark = contents(path)
    assert kicks == [kick(ring) for ring in range(len(kicks))]
    assert len(kicks) > 10
    assert isinstance(mark, Lost)
    assert mark.full
    assert capsys.readouterr().err == f"--record {path}: the recording has reached its limit and stops\n"


def test_file_that_is_full_already_gets_a_mark_alone(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    recording = open_recording(path, "a program", limit=100)
    recording.write(kick(1))
    recording.close()
    assert path.read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("name", ["missing/recording", ".", "link"])
def test_file_that_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BalloonError, match=r"^--record [^\n]*: [^\n]+$"):
        open_recording(tmp_path / name, "a program")
    assert not (tmp_path / "elsewhere").exists()


def test_records_that_found_no_room_are_told_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    recording = RecordingFile(FileIO("/dev/full", "ab"), "a program", 1000)
    while "wait for room" not in (waits := capsys.readouterr().err):
        assert waits == ""
    recording.close()
    assert capsys.readouterr().err == "--record /dev/full: No space left on device: no more is recorded\n"
