"""The processes and files of one run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from guest.linux.processes import children, kill_adopted, open_log, scratch_parent
from protocol.errors import BalloonError


def test_scratch_directory_has_a_name_for_the_command_line(tmp_path: Path) -> None:
    strange = tmp_path / "a b"
    strange.mkdir()
    assert scratch_parent({"TMPDIR": str(strange)}) == "/tmp"
    assert scratch_parent({"TMPDIR": "/var/tmp"}) == "/var/tmp"
    assert scratch_parent({}) == "/tmp"


def test_log_is_a_new_or_emptied_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old")
    os.close(open_log(path))
    assert path.read_text() == ""
    with pytest.raises(BalloonError, match="not a regular file"):
        open_log(Path(os.devnull))
    with pytest.raises(BalloonError, match="No such file"):
        open_log(tmp_path / "missing/log")


def test_adopted_children_are_killed_and_others_live() -> None:
    program = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program]) as other:
        before = children(os.getpid())
        with subprocess.Popen([sys.executable, "-c", program]) as adopted:
            kill_adopted(before)
            with pytest.raises(ProcessLookupError):
                os.kill(adopted.pid, 0)
            adopted.returncode = -9  # reaped by kill_adopted
        assert other.poll() is None
        other.kill()
