"""``--record``: a daemon records what machines do, and the explanation says where each went wrong."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.memory import PAGE_SIZE
from protocol.recording.lines import Cut, read_records
from protocol.recording.records import (
    TAKEN_OVER,
    Record,
    Remark,
    SessionBegin,
    SessionEnd,
    Signal,
    TakenChain,
    UsedChain,
    WireMessage,
)
from protocol.split_ring import Descriptor
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import Channel, build_message
from protocol.vhost_user_payloads import VringState
from scripts.check.recording.explain import Explanation
from scripts.check.recording.listing import fault_text
from tests.harness.processes import DEADLINE, ROOT, DaemonProcess, ProgramProcess, until
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE, Client, VirtualMachine


def records_of(path: Path) -> list[Record | Cut]:
    with path.open("rb") as file:
        return list(read_records(file))


def faults_of(path: Path) -> dict[int, list[str]]:
    explanation = Explanation()
    for each in explanation.explain(records_of(path)):
        assert [line for line in each.lines if len(line) > 80] == []
    return {session.number: [fault_text(fault) for fault in session.faults] for session in explanation.sessions}


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_session_of_an_emulated_guest_is_recorded_without_a_fault(tmp_path: Path, ring: str) -> None:
    path = tmp_path / "recording"
    options = ("--memory", "128M", "--workload", "memhog", "--ring", ring)
    with DaemonProcess(tmp_path, "--features", "packed=on", "--record", str(path)) as daemon:
        with ProgramProcess("guest", "--socket-path", str(daemon.socket_path), *options) as guest:
            assert guest.wait() == 0
        reports = daemon.settled(1)["reports"]
    records = records_of(path)
    chains = [each for each in records if isinstance(each, TakenChain) and each.queue == "reporting"]
    used = [each for each in records if isinstance(each, UsedChain) and each.ring == chains[0].ring]
    assert len(chains) == len(used) == reports > 0
    assert {fate for each in chains for _, _, fate in each.ranges} == {"discarded"}
    streams = {each.stream for each in records if isinstance(each, WireMessage)}
    assert streams >= {Channel.FRONTEND_REQUESTS, Channel.BACKEND_REPLIES}
    table = next(each for each in records if isinstance(each, WireMessage) and each.request == 5)
    assert table.files == (("memfd", 128 << 20),)
    assert {each.what for each in records if isinstance(each, Signal)} == {"kick", "call"}
    assert isinstance(records[-1], SessionEnd)
    assert faults_of(path) == {1: []}


def test_explanation_says_where_machines_went_wrong(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    with DaemonProcess(tmp_path, "--record", str(path)) as daemon:
        with VirtualMachine(daemon.socket_path) as machine:
            machine.report((DATA_AT, PAGE_SIZE), (DATA_AT + 1, PAGE_SIZE))
            machine.client.send(build_message(FrontendRequest.SET_VRING_NUM, VringState(1, 3)))
            daemon.events.wait("message_refused", request="SET_VRING_NUM")
            ring = machine.reporting.ring
            ring.write_descriptor(5, Descriptor(GUEST_BASE, PAGE_SIZE, 3, 5))
            ring.avail[2 + ring.avail[1] % ring.size] = 5
            ring.avail[1] += 1
            machine.reporting.kick()
            daemon.events.wait("queue_stopped", queue=machine.reporting.index)
        daemon.settled(1)
        client = Client(daemon.socket_path)
        client.send(build_message(FrontendRequest.SET_OWNER) + b"\x01\x00\x00")
        client.close()
        daemon.settled(2)
        client = Client(daemon.socket_path)
        client.send(b"GET / HTTP/1.1\r\n")
        daemon.settled(3)
        client.close()
    first, second, third = (faults_of(path)[number] for number in (1, 2, 3))
    assert first == [
        "queue 2 (reporting): not discarded: unaligned (chain 0: 1 range, 4.0 KiB)",
        "SET_VRING_NUM was refused: queue size 3 of a split ring is not a power of two",
        "queue 2 (reporting) is broken: descriptor chain 5 is a loop or longer than its ring of 128",
    ]
    assert second == [
        "3 bytes of the front-end requests are not a message [V-1]",
        "the session ended: front-end gone in the middle of a message",
    ]
    assert third[0] == "12 bytes of the front-end requests are not a message [V-1]"
    assert third[1].startswith("the session ended: message version ")


def test_recording_of_a_killed_daemon_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    daemon = DaemonProcess(tmp_path, "--record", str(path))
    try:
        with VirtualMachine(daemon.socket_path) as machine:
            machine.report((DATA_AT, PAGE_SIZE))
            until(lambda: "used" in path.read_text(), "the report is recorded")
            daemon.process.kill()
            assert daemon.wait() != 0
    finally:
        daemon.kill()
    with path.open("r+b") as file:  # killed in the middle of a line
        file.truncate(path.stat().st_size - 10)
    assert isinstance(records_of(path)[-1], Cut)
    socket_path = tmp_path / "second.sock"
    command = [sys.executable, "-m", "host", "--socket-path", str(socket_path), "--record", str(path)]
    with subprocess.Popen(command, cwd=ROOT) as second:
        until(socket_path.exists, "the second run has begun")
        second.terminate()
        assert second.wait(DEADLINE) == 0
    assert len([each for each in records_of(path) if isinstance(each, Cut)]) == 1


def test_recording_stops_at_its_limit_and_the_daemon_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    with DaemonProcess(tmp_path, "--record", str(path), "--record-limit", "16K") as daemon:
        with VirtualMachine(daemon.socket_path) as machine:
            for _ in range(100):
                machine.report((DATA_AT, PAGE_SIZE))
            machine.check_alive()
        assert daemon.settled(1)["reports"] == 101
        assert daemon.stderr() == f"--record {path}: the recording has reached its limit and stops\n"
        daemon.forget_stderr()
    assert path.stat().st_size <= 16 << 10
    assert "the recording reached its limit" in faults_of(path)[0]


@pytest.mark.parametrize("name", ["missing/file", "."])
def test_unwritable_recording_is_one_line_before_the_daemon_listens(tmp_path: Path, name: str) -> None:
    socket_path = tmp_path / "balloon.sock"
    options = ["--socket-path", str(socket_path), "--record", str(tmp_path / name)]
    command = [sys.executable, "-m", "host", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"vhost-user-balloon: --record {tmp_path / name}: ")
    assert result.stderr.count("\n") == 1
    assert not socket_path.exists()


def test_refusals_are_recorded_although_events_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    with DaemonProcess(tmp_path, "--record", str(path)) as daemon:
        client = Client(daemon.socket_path)
        for _ in range(200):
            client.send(build_message(FrontendRequest.SET_VRING_NUM, VringState(2, 3)))
        client.close()
        daemon.settled(1)
    refusals = [each for each in records_of(path) if isinstance(each, Remark) and each.event == "message_refused"]
    assert len(refusals) == 200


@pytest.mark.parametrize("workers", ["2", "vm"])
def test_sessions_of_all_workers_are_recorded_and_go_on_in_the_next_worker(tmp_path: Path, workers: str) -> None:
    path = tmp_path / "recording"
    with DaemonProcess(tmp_path, "--workers", workers, "--record", str(path)) as daemon:
        with VirtualMachine(daemon.socket_path) as first, VirtualMachine(daemon.socket_path) as second:
            for machine in (first, second):
                machine.report((DATA_AT, PAGE_SIZE))
            until(lambda: path.read_text().count('"used"') >= 2, "the reports are recorded")
            message = build_message(FrontendRequest.GET_VRING_BASE, VringState(0, 0))
            first.client.send(message[:5])  # it is in hand
            (pid,) = [pid for pid, title in daemon.workers().items() if "(vm 1)" in title]
            os.kill(pid, signal.SIGKILL)
            daemon.events.wait("taken_over", vm=1)
            first.client.send(message[5:])
            assert first.client.reply().payload == VringState(0, 0)
            for machine in (first, second):
                machine.report((DATA_AT, PAGE_SIZE))
        daemon.settled(1)
        daemon.settled(2)
        daemon.forget_stderr()
    assert faults_of(path) == {1: [], 2: []}
    records = records_of(path)
    assert sum(isinstance(each, SessionBegin) for each in records) == 2
    assert sum(isinstance(each, SessionEnd) for each in records) == 2
    assert [each.session for each in records if isinstance(each, Remark) and each.event == TAKEN_OVER] == [1]
    assert sum(isinstance(each, UsedChain) for each in records) == 4
    messages = [each for each in records if isinstance(each, WireMessage)]
    assert [each.stream for each in messages if each.request == FrontendRequest.GET_VRING_BASE] == [
        Channel.FRONTEND_REQUESTS,
        Channel.BACKEND_REPLIES,
    ]
