"""A report's file is there whole or not at all, and every error names it."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from scripts.json_output import open_json
from scripts.report_file import report_file
from tests.harness.processes import DEADLINE, ROOT


def test_file_is_there_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "report"
    with report_file(path, "--json") as stream:
        stream.write("half")
        assert not path.exists()
        stream.write(" and half")
    assert path.read_text() == "half and half"
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def write(path: str | Path, option: str, text: str, error: type[BaseException] | None = None) -> None:
    """Write a report, which ``error`` interrupts."""
    with report_file(path, option) as stream:
        stream.write(text)
        if error is not None:
            raise error


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, OSError])
def test_interrupted_report_leaves_what_was_there(tmp_path: Path, interruption: type[BaseException]) -> None:
    path, other = tmp_path / "report", tmp_path / "other"
    path.write_text("the last one")
    path.chmod(0o640)
    for one in (path, other):
        with pytest.raises(interruption):
            write(one, "--json", "half", interruption)
    assert path.read_text() == "the last one"
    assert list(tmp_path.iterdir()) == [path]
    write(path, "--json", "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o640)


def test_link_leads_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("report")
    write(tmp_path / "link", "--json", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "report").read_text() == "text"


def test_pipe_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.append(path.read_text()))
    reader.start()
    write(path, "--json", "text")
    reader.join()
    assert seen == ["text"]
    assert path.is_fifo()


def test_full_disk_is_named() -> None:
    with pytest.raises(BalloonError, match=r"^--junit /dev/full: No space left on device$"):
        write("/dev/full", "--junit", "text")
    with pytest.raises(BalloonError, match=r"^--junit /dev/full: No space left on device$"):
        write("/dev/full", "--junit", "text" * 10000)


def test_json_goes_to_a_file_to_standard_output_or_nowhere(tmp_path: Path) -> None:
    with open_json(str(tmp_path / "report")) as stream:
        assert stream is not None
        json.dump([1], stream)
    assert json.loads((tmp_path / "report").read_text()) == [1]
    with open_json("-") as stream:
        assert stream is sys.stdout
    with open_json(None) as stream:
        assert stream is None


@pytest.mark.parametrize(
    ("path", "reason"), [("/nowhere/report", "No such file or directory"), ("/", "Is a directory"), ("/proc/x", "")]
)
def test_wrong_path_is_told_before_the_run(path: str, reason: str) -> None:
    with pytest.raises(BalloonError, match=f"^--json {path}: {reason}"), report_file(path, "--json"):
        pytest.fail("the run has begun")


def check(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run ``balloon-check``."""
    return subprocess.run(
        [sys.executable, "-m", "scripts.check", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=3 * DEADLINE,
        check=False,
    )


@pytest.mark.processes
def test_full_disk_is_one_line_of_a_command() -> None:
    done = check("hostile", "--sessions", "1", "--alone", "0.1", "--json", "/dev/full")
    assert (done.returncode, done.stderr) == (1, "balloon-check: --json /dev/full: No space left on device\n")
