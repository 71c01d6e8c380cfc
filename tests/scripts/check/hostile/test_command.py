"""``balloon-check hostile``: a short run against our daemon, and runs that have to fail."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts.check.__main__ import main
from scripts.check.hostile import run
from scripts.check.hostile.acts.attack import Attack
from scripts.check.hostile.session import Plan, play
from scripts.check.machine.vhost_user_device import VhostUserDevice
from tests.harness.processes import DaemonProcess, ProgramProcess

pytestmark = pytest.mark.processes


def hostile(result: Path, *words: str) -> tuple[int, Any]:
    """Run the command; return its status and the JSON."""
    status = main(["hostile", "--alone", "0.3", "--json", str(result), *words])
    return status, json.loads(result.read_text())


def test_good_machine_goes_on_and_nothing_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, seen = hostile(tmp_path / "result.json", "--sessions", "60")
    out = capsys.readouterr().out
    alone, sessions, whole = seen["periods"]
    assert (alone["name"], sessions["name"]) == ("alone", "1-60")
    assert whole["good"]["samples"] > 20  # a busy machine leaves few for a part of the run
    assert [state["sessions"] for state in seen["daemon"]] == [0, 60]
    assert len({state["descriptors"] for state in seen["daemon"]}) == 1
    assert seen["not_brought_up"] == {}
    # A stall may be the busy machine's. All else is the daemon's.
    assert [fault for fault in seen["faults"] if "reports of the good machine took over" not in fault] == []
    assert status == (1 if seen["faults"] else 0)
    assert ("PASS: " in out) is (status == 0)


def test_daemon_that_stands_still_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with DaemonProcess(tmp_path) as daemon:

        def play_and_stop(device: VhostUserDevice, plan: Plan) -> Attack | str:
            daemon.signal(signal.SIGSTOP)
            time.sleep(0.8)  # far more than the delays of a busy machine, which are taken off
            daemon.signal(signal.SIGCONT)
            return play(device, plan)

        monkeypatch.setattr(run, "play", play_and_stop)
        words = ("--socket-path", str(daemon.socket_path), "--only", "3", "--sessions", "1")
        status, seen = hostile(tmp_path / "result.json", *words)
        daemon.forget_stderr()
    assert status == 1
    assert max(stall["own"] for stall in seen["stalls"]) > 0.1
    assert "that the machine does not explain" in capsys.readouterr().out


@contextmanager
def broken_daemon(directory: Path, fault: str) -> Iterator[Path]:
    """A daemon with a fault; yields its socket."""
    path = directory / "broken.sock"
    with ProgramProcess("scripts.check.broken.serve", "--socket-path", str(path), command=(fault,)) as daemon:
        daemon.events.wait("listening")
        yield path


def test_descriptors_that_are_left_open_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SETTLE_SECONDS", 0.5)
    with broken_daemon(tmp_path, "fd-leak") as path:
        words = ("--socket-path", str(path), "--only", "14", "--sessions", "3")
        status, seen = hostile(tmp_path / "result.json", *words)
    assert status == 1
    assert any("descriptors are open" in fault for fault in seen["faults"])


def test_harm_to_the_good_machine_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with broken_daemon(tmp_path, "one-page-too-many") as path:
        assert main(["hostile", "--socket-path", str(path), "--sessions", "3"]) == 1
    error = capsys.readouterr().err
    assert "the good machine: pages that were not given away are gone" in error
    assert error.count("\n") == 1


def test_sessions_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hostile", "--list", "--seed", "9", "--sessions", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["hostile", "--list", "--seed", "9", "--only", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == lines[2:3]
    assert [line.split(" (")[0] for line in lines] == [f"session {number}" for number in range(1, 5)]


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--socket-path", "/nowhere/socket"], 3, "/nowhere/socket: No such file or directory"),
        (["--sessions", "1", "--json", "/nowhere/result"], 1, "--json /nowhere/result: No such file or directory"),
    ],
)
def test_mistake_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], status: int, reason: str) -> None:
    assert main(["hostile", *words]) == status
    assert capsys.readouterr().err == f"balloon-check: {reason}\n"
