"""Causes that are produced on purpose, and found by a daemon and its client."""

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from host.balloonctl.daemons import Daemons
from host.balloonctl.doctor import diagnosis_object, fresh_entries
from host.doctor.diagnosis import diagnose
from host.doctor.facts import read_facts
from host.qmp.qmp_client import QmpClient
from protocol.errors import VhostUserError
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import build_message
from protocol.virtio import DeviceStatus, FeatureBit
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from tests.end_to_end.daemon.test_control import ControlledDaemon
from tests.harness.processes import ROOT, until
from tests.harness.virtual_machine import DATA_AT, DEFLATE, INFLATE, RAM_BYTES, WANTED, Ram, VirtualMachine

PAGE = 4096
PAGE_REPORTING, PAGE_POISON = 1 << 5, 1 << 4
F_SEAL_FUTURE_WRITE = 0x10
LATER = 20.0


def causes(daemon: ControlledDaemon) -> list[list[str]]:
    """Return what is found of each machine."""
    with Daemons([daemon.control_path]) as daemons:
        machines = list(daemons.machines())
        entries = fresh_entries(machines)
    objects = [diagnosis_object(machine.label, entry) for machine, entry in zip(machines, entries, strict=True)]
    return [[found["cause"] for found in each["findings"]] for each in objects]


def causes_later(client: QmpClient) -> list[list[str]]:
    """Return what is found of each machine if nothing changes for another 20 seconds."""
    found = []
    for entry in client.command("query-vms"):
        entry["age"] += LATER
        if entry["statistics-unanswered"]:
            entry["statistics-unanswered"] += LATER
        for queue in entry["queues"].values():
            if queue["running-for"] is not None:
                queue["running-for"] += LATER
        found.append([finding.cause.value for finding in diagnose(read_facts(entry))])
    return found


def healthy(machine: VirtualMachine) -> None:
    machine.report((DATA_AT, PAGE))


def unpunchable(machine: VirtualMachine) -> None:
    fcntl.fcntl(machine.ram.fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    machine.report((DATA_AT, PAGE))


def out_of_range(machine: VirtualMachine) -> None:
    machine.report((1 << 40, PAGE))


def nothing(_machine: VirtualMachine) -> None:
    pass


def partly_out_of_range(machine: VirtualMachine) -> None:
    machine.report((DATA_AT, PAGE), (1 << 40, PAGE))


def fails_its_probe(machine: VirtualMachine) -> None:
    protocol_features = machine.frontend.protocol_features | 1 << ProtocolFeature.STATUS
    assert machine.ask(FrontendRequest.SET_PROTOCOL_FEATURES, protocol_features) == 0
    assert machine.ask(FrontendRequest.SET_STATUS, int(DeviceStatus.DRIVER | DeviceStatus.FAILED)) == 0


def leaves_reporting_out(machine: VirtualMachine) -> None:
    machine.set_memory()
    machine.start(machine.queues[INFLATE])
    machine.start(machine.queues[DEFLATE])


def shares_too_little(machine: VirtualMachine) -> None:
    """The last part of the last ring lies beyond what is shared."""
    with pytest.raises(VhostUserError, match="SET_VRING_ENABLE"):  # there is no memory yet
        machine.start(machine.reporting)
    machine.region = replace(machine.region, size=machine.reporting.offset + PAGE)
    machine.set_memory()


def breaks_its_ring(machine: VirtualMachine) -> None:
    machine.reporting.ring.avail[1] = 1000
    machine.reporting.kick()


def says(**statistics: int) -> Callable[[VirtualMachine], None]:
    """Return what a guest does that gives these statistics, in MiB."""

    def act(machine: VirtualMachine) -> None:
        tags = {"memfree": 4, "memtot": 5, "avail": 6, "caches": 7}
        data = b"".join(struct.pack("<HQ", tags[name], size << 20) for name, size in statistics.items())
        machine.offer(BalloonQueue.STATS, data)

    return act


def also(*acts: Callable[[VirtualMachine], None]) -> Callable[[VirtualMachine], None]:
    """Return what a machine does that does all of these."""

    def act(machine: VirtualMachine) -> None:
        for each in acts:
            each(machine)

    return act


@contextmanager
def machines(
    daemon: ControlledDaemon,
    *makers: tuple[int, Callable[[VirtualMachine], None]],
    run: bool = True,
    memory: int = RAM_BYTES,
) -> Iterator[None]:
    """Connect a machine with each set of wanted features, with queues that ``run``, and have each do something."""
    connected = []
    try:
        for wanted, act in makers:
            connected.append(VirtualMachine(daemon.socket_path, ram=Ram(memory), wanted=wanted, run=run))
            act(connected[-1])
        yield
    finally:
        for machine in connected:
            machine.close()


def test_causes_side_by_side(tmp_path: Path) -> None:
    """Each machine has its own, and one that works is beside them."""
    with (
        ControlledDaemon(tmp_path, "--features", "page-poison=on") as daemon,
        machines(
            daemon,
            (WANTED, healthy),
            (WANTED & ~PAGE_REPORTING, nothing),
            (WANTED | PAGE_POISON, healthy),
            (WANTED, unpunchable),
            (WANTED, out_of_range),
        ),
    ):
        assert causes(daemon) == [[], ["not-negotiated"], ["poison"], ["cannot-punch"], ["all-refused"]]


LATER_CAUSES: list[list[str]] = [
    [],
    ["not-negotiated"],
    ["ring-broken"],
    ["inhibited"],
    ["partly-refused"],
    ["never-kicked"],
    ["order-too-large"],
    ["private-memory"],
    ["page-cache"],
    ["guest-busy"],
    ["guest-silent"],
    ["probe-failed"],
    ["queue-not-set-up"],
    ["queue-waits"],
    ["no-driver"],
]
"""What is found of each machine of the test below."""


@pytest.mark.parametrize("workers", ["0", "2", "vm"])
def test_causes_that_take_time_side_by_side(tmp_path: Path, workers: str) -> None:
    statistics = WANTED | 1 << BalloonFeature.STATS_VQ
    with (
        ControlledDaemon(tmp_path, "--workers", workers) as daemon,
        QmpClient(daemon.control_path) as client,
        socket.socket(socket.AF_UNIX) as asks,
        machines(
            daemon,
            (WANTED, healthy),
            (1 << FeatureBit.VERSION_1, nothing),
            (WANTED, breaks_its_ring),
            (WANTED, healthy),  # and inhibited below
            (WANTED, partly_out_of_range),
            (WANTED, nothing),
        ),
        machines(
            daemon,
            (statistics, says(memtot=960, memfree=900)),
            (statistics, also(healthy, says(memtot=2048, memfree=1024))),
            memory=2 << 30,
        ),
        machines(
            daemon,
            (statistics, also(says(memtot=16, memfree=2, caches=10), healthy)),
            (statistics, also(says(memtot=16, memfree=2, caches=1, avail=3), healthy)),
            (statistics, also(says(memtot=16, memfree=12), healthy)),  # it is asked again below, and owes the answer
        ),
        machines(
            daemon,
            (WANTED, fails_its_probe),
            (WANTED, leaves_reporting_out),
            (WANTED, shares_too_little),
            run=False,
        ),
        socket.socket(socket.AF_UNIX) as without_driver,
    ):
        without_driver.connect(str(daemon.socket_path))
        without_driver.send(build_message(FrontendRequest.SET_OWNER))
        client.command("inhibit", vm=4)
        asks.connect(str(daemon.control_path))
        asks.send(b'{"execute":"qmp_capabilities"}{"execute":"query-guest-statistics","arguments":{"vm":11}}')
        until(lambda: causes_later(client) == LATER_CAUSES, "each cause is found")


@pytest.mark.parametrize(
    ("options", "cause"),
    [(("--features", "page-reporting=off"), "not-offered"), (("--discard", "none"), "discard-off")],
)
def test_causes_of_the_daemon(tmp_path: Path, options: tuple[str, ...], cause: str) -> None:
    with ControlledDaemon(tmp_path, *options) as daemon, machines(daemon, (WANTED, nothing)):
        assert causes(daemon) == [[cause]]


def test_front_end_that_is_stopped(tmp_path: Path) -> None:
    """It is seen when the process is looked at next, which is when its memory table comes, and every few seconds."""
    program = [sys.executable, "-m", "guest", "--socket-path", str(tmp_path / "socket"), "--memory", "64M", "--hold"]
    with ControlledDaemon(tmp_path) as daemon:
        program[4] = str(daemon.socket_path)
        with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL) as guest:
            daemon.events.wait("memory", vm=1)
            os.kill(guest.pid, signal.SIGSTOP)
            until(lambda: causes(daemon)[0][:1] == ["front-end-stuck"], "the front-end is found stuck")
            os.kill(guest.pid, signal.SIGKILL)
