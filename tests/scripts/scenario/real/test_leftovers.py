"""Where a run keeps its files, and that it removes what a killed run of its own left, and only that."""

import os
import subprocess
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from scripts.scenario.real import leftovers
from scripts.scenario.real.leftovers import (
    CONTROL,
    MOST_SOCKET_BYTES,
    directory_parent,
    remove_old_directories,
    remove_old_groups,
    run_directory,
)


def dead_pid() -> int:
    """Return the id of a process that is over."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_directory_whose_sockets_would_have_too_long_a_path_is_passed_over(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    assert directory_parent([str(long), "/tmp"]) == Path("/tmp")
    assert directory_parent([str(tmp_path / "missing"), "/tmp"]) == Path("/tmp")
    with pytest.raises(BalloonError, match="set TMPDIR"):
        directory_parent([str(long)])


def test_longest_directory_that_is_taken_leaves_room_for_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.scenario.real.leftovers.os.access", lambda path, mode: True)
    lengths = [length for length in range(1, 107) if directory_parent(["é" * length, "/"]) != Path("/")]
    below = f"/{leftovers.DIRECTORY_PREFIX}4194304-12345678/{CONTROL}"
    assert 2 * max(lengths) + len(below) in (MOST_SOCKET_BYTES, MOST_SOCKET_BYTES - 1)


def test_run_has_a_directory_that_tells_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "directory_parent", lambda: tmp_path)
    with run_directory() as directory:
        assert directory.parent == tmp_path
        assert directory.name.startswith(f"balloon-run-{os.getpid()}-")
        # Our own process lives, and so does the directory.
        remove_old_directories(tmp_path)
        assert directory.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_removed_and_all_else_stays(tmp_path: Path) -> None:
    dead = dead_pid()
    (tmp_path / f"balloon-run-{dead}-a1b2c3d4").mkdir()
    (tmp_path / f"balloon-run-{dead}-a1b2c3d4" / "host").touch()
    (tmp_path / f"vhost-user-balloon-run-{dead}").mkdir()
    kept = {f"balloon-run-{os.getpid()}-x", "balloon-run-1-x", "balloon-run-x", f"my-balloon-run-{dead}-x"}
    kept |= {f"vhost-user-balloon-run-{os.getpid()}", f"vhost-user-balloon-run-{dead}-x"}
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / f"balloon-run-{dead}-link").symlink_to(tmp_path / "balloon-run-x")
    (tmp_path / f"balloon-run-{dead}-file").touch()
    remove_old_directories(tmp_path)
    remove_old_groups(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == kept | {f"balloon-run-{dead}-link", f"balloon-run-{dead}-file"}


def test_group_that_is_still_busy_stays(tmp_path: Path) -> None:
    busy = tmp_path / f"vhost-user-balloon-run-{dead_pid()}"
    (busy / "occupied").mkdir(parents=True)
    remove_old_groups(tmp_path)
    assert busy.is_dir()


def test_directories_of_another_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / f"balloon-run-{dead_pid()}-x"
    directory.mkdir()
    monkeypatch.setattr("scripts.scenario.real.leftovers.os.geteuid", lambda: directory.stat().st_uid + 1)
    remove_old_directories(tmp_path)
    assert directory.is_dir()


def test_place_that_cannot_be_read_is_not_an_error(tmp_path: Path) -> None:
    remove_old_directories(tmp_path / "missing")
    remove_old_groups(tmp_path / "missing")
