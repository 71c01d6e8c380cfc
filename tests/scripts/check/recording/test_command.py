"""``balloon-check explain``: what it prints, what it writes, and one line for each file that will not do."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from protocol.process.command_line import run_command
from protocol.recording.lines import build_line
from protocol.recording.records import Header
from scripts.check.recording import command, options
from tests.scripts.check.recording.sessions import Tape


def explain(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    options.add_to(parser)
    arguments = parser.parse_args([*map(str, words)])
    return run_command("balloon-check", lambda: command.run(arguments))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    tape = Tape()
    tape.ready()
    for head in range(2):
        tape.chain(head, "unaligned")
        tape.used(head, head)
    tape.end()
    path = tmp_path / "recording"
    path.write_text("".join(map(build_line, tape.records)))
    return path


def test_listing_ends_with_a_summary(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(recording) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "recorded by a test"
    assert out[-3:] == [
        "session 1: 21 messages, 28 records",
        "  !! queue 3 (reporting): not discarded: unaligned (chain 0: 1 range, 4.0 MiB),",
        "       2 times",
    ]


def test_faults_alone(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(recording, "--faults") == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_json_has_every_record_and_a_summary(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(recording, "--json") == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["kind"] for each in objects[:2]] == ["header", "begin"]
    assert objects[-1]["kind"] == "summary"
    assert objects[-1]["faults"][0]["count"] == 2


def test_session_is_chosen_by_its_number(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(recording, "--session", "1", "--faults") == 0
    assert "session 1:" in capsys.readouterr().out
    assert explain(recording, "--session", "2") == 2
    assert capsys.readouterr().err == f"balloon-check: {recording}: no session 2\n"


def test_files_for_wireshark_are_written_instead(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(recording, "--pcapng", tmp_path / "out.pcapng", "--dissector", tmp_path / "out.lua") == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "out.pcapng").read_bytes().startswith(b"\x0a\x0d\x0d\x0a")
    assert "SET_MEM_TABLE" in (tmp_path / "out.lua").read_text()


def test_dissector_needs_no_recording(tmp_path: Path) -> None:
    assert explain("--dissector", tmp_path / "out.lua") == 0


def test_recording_without_a_session_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recording"
    path.write_text(build_line(Header(t=0, time=0, program="a test")))
    assert explain(path) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no session was recorded"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file or directory"),
        (b"", "empty"),
        (b"\x7fELF\x00\xff", "not a recording"),
        (b'{"event": "listening"}\n', "not a recording"),
        (b'{"format":"vhost-user-balloon recording","version":9}\n', "a recording of version 9, and this program "),
    ],
)
@pytest.mark.parametrize("option", ["--json", "--pcapng"])
def test_file_that_will_not_do_is_one_line(
    tmp_path: Path, content: bytes | None, says: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "recording", tmp_path / "out"
    if content is not None:
        path.write_bytes(content)
    assert explain(path, option, *([out] if option == "--pcapng" else [])) == 2
    assert capsys.readouterr().err.startswith(f"balloon-check: {path}: {says}")
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "status"),
    [((), 2), (("--pcapng", "x"), 2), (("{recording}", "--pcapng", "{recording}"), 2)],
)
def test_missing_or_wrong_file_is_a_usage_error(recording: Path, words: Sequence[str], status: int) -> None:
    before = recording.read_bytes()
    assert explain(*(word.format(recording=recording) for word in words)) == status
    assert recording.read_bytes() == before


def test_unwritable_output_is_one_line(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(recording, "--pcapng", "/proc/nothing") == 1
    assert explain("--dissector", "/proc/nothing") == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["--pcapng /proc/nothing", "--dissector /proc/nothing"]
