"""What ``--record`` of the checks writes: sessions that say which case they are of, and what was found."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.recording.records import FRONT_END, Record, Remark, SessionBegin, SessionEnd, WireMessage
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import build_message
from scripts.check.__main__ import main
from scripts.check.machine.connection import FrontendConnection
from scripts.check.recording.check_recording import CheckRecording
from scripts.check.recording.explain import Explanation
from scripts.check.run import run_cases
from scripts.check.suite import Suite
from scripts.check.verdict import Failed, skip
from tests.harness.processes import ROOT, DaemonProcess, ProgramProcess
from tests.scripts.check.faults.proxy_process import ProxyProcess

OWNER = build_message(FrontendRequest.SET_OWNER)
PAIRS = Suite[CheckRecording]("pairs")


@PAIRS.case("wrong", clauses=("S-17",))
def wrong(recording: CheckRecording) -> None:
    """It is right."""
    talk(recording)
    raise Failed("the used length is 1", "S-17")


@PAIRS.case("right")
def right(recording: CheckRecording) -> None:
    """It is right too."""
    talk(recording)


@PAIRS.case("skipped")
def skipped(recording: CheckRecording) -> None:
    """It is not offered."""
    skip("it is not offered")


def talk(recording: CheckRecording) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        connection = FrontendConnection(ours, recording)
        connection.send(OWNER)
        connection.close()


@pytest.fixture
def records() -> list[Record]:
    """The records of a run of three cases, each verdict after the end of its connection."""
    written: list[Record] = []
    recording = CheckRecording(written.append)
    list(run_cases(recording.watched(list(PAIRS)), lambda: Given(recording)))
    return written


class Given:
    def __init__(self, recording: CheckRecording) -> None:
        self._recording = recording

    def __enter__(self) -> CheckRecording:
        return self._recording

    def __exit__(self, *_: object) -> None:
        pass


def test_each_connection_is_a_session_of_its_case(records: list[Record]) -> None:
    begins = [record for record in records if isinstance(record, SessionBegin)]
    assert [(begin.session, begin.pid, begin.side) for begin in begins] == [
        (1, os.getpid(), FRONT_END),
        (2, os.getpid(), FRONT_END),
    ]
    assert [record.session for record in records if isinstance(record, WireMessage)] == [1, 2]
    cases = [record for record in records if isinstance(record, Remark) and record.event == "case"]
    assert [(case.session, case.fields["name"]) for case in cases] == [(1, "wrong"), (2, "right")]
    assert [record.reason for record in records if isinstance(record, SessionEnd)] == [
        "the check closed the connection"
    ] * 2


def test_verdicts_are_explained(records: list[Record]) -> None:
    explanation = Explanation()
    lines = [line[20:] for each in explanation.explain(records) for line in each.lines]
    assert "case wrong: It is right." in lines
    assert "FAIL wrong: the used length is 1" in lines
    assert "PASS right" in lines
    assert "NOT EXERCISED skipped: it is not offered" in lines
    summaries = {session.case: [fault.text for fault in session.faults] for session in explanation.sessions}
    assert summaries == {"wrong": [], "right": [], "": ["wrong: the used length is 1"]}


@pytest.mark.parametrize(
    "command",
    [
        ("device", "--socket-path", "SOCKET"),
        ("device", "--generic", "--socket-path", "SOCKET"),
        ("driver", "--socket-path", "SOCKET"),
        ("proxy", "--listen", "SOCKET.proxy", "--connect", "SOCKET"),
    ],
    ids=" ".join,
)
def test_record_that_cannot_be_written_is_one_line(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "listener"
    record = tmp_path / "none" / "record"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        words = [word.replace("SOCKET", str(path)) for word in command]
        assert main([*words, "--record", str(record)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"balloon-check: --record {record}: No such file or directory",
    ]


def test_qemus_balloon_is_not_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "--qemu", "--record", str(tmp_path / "record")]) == 2
    assert "--record goes with --socket-path" in capsys.readouterr().err
    assert not (tmp_path / "record").exists()


def check(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "scripts.check", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60, check=False)


def explained(path: Path, *options: str) -> str:
    done = check("explain", str(path), *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path) as daemon:
        yield daemon


@pytest.mark.processes
def test_device_is_recorded(daemon: DaemonProcess, tmp_path: Path) -> None:
    record = tmp_path / "record"
    done = check("device", "--socket-path", str(daemon.socket_path), "report-exact/split", "--record", str(record))
    assert done.returncode == 0, done.stdout
    text = explained(record)
    assert "queue 3 (reporting): chain 0, 10 descriptors" in text
    assert "chain 0 is given back, length 0\n" in text
    assert "PASS report-exact/split" in text
    assert "session 2, report-exact/split: " in text
    assert "!!" not in text


@pytest.mark.processes
def test_generic_run_is_recorded(daemon: DaemonProcess, tmp_path: Path) -> None:
    record = tmp_path / "record"
    case = ("--generic", "V-44")
    done = check("device", "--socket-path", str(daemon.socket_path), *case, "--record", str(record))
    assert done.returncode == 0, done.stdout
    assert "GET_CONFIG" in explained(record)


@pytest.mark.processes
def test_proxy_is_recorded(daemon: DaemonProcess, tmp_path: Path) -> None:
    record = tmp_path / "record"
    options = ("--memory", "64M", "--workload", "idle:seconds=0.1")
    with (
        ProxyProcess(tmp_path, daemon.socket_path, "--script", "delayed-reply", "--record", str(record)) as proxy,
        ProgramProcess("guest", "--socket-path", str(proxy.socket_path), *options) as guest,
    ):
        assert guest.wait() == 0
        proxy.events.wait("disconnected", session=1)
    text = explained(record)
    assert "recorded by the proxy" in text
    assert "the proxy carries out line" in text
    assert "SET_MEM_TABLE" in text
    assert "session 1: " in text
