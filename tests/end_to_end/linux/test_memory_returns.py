"""The whole chain with an unmodified kernel: memory that a program freed returns to the host."""

import time
from pathlib import Path

import pytest

from guest.linux.kernel_log import kernel_warnings
from protocol.units import MIB
from tests.harness.processes import DaemonProcess, ProgramProcess, until

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]

MEMORY = 512 * MIB
FILLED = 300 * MIB
LEFT = 0.4 * MEMORY
WITHIN = 15.0
"""Seconds. The kernel waits 2 s before a pass of reporting, then takes as many passes as its budget needs."""


def peak_of(guest: ProgramProcess) -> int:
    """Return the most that the guest has cost the host so far, in bytes."""
    return max((event["resident_bytes"] for event in guest.events.all("memory")), default=0)


def test_memory_of_a_deleted_file_returns_to_the_host(tmp_path: Path) -> None:
    log, seen, done = tmp_path / "kernel.log", tmp_path / "seen", tmp_path / "done"
    script = f"""
        dd if=/dev/zero of=/tmp/fill bs=1M count={FILLED // MIB} 2>/dev/null && echo filled
        until [ -e /run/host{seen} ]; do sleep 0.1; done
        rm /tmp/fill && echo deleted
        until [ -e /run/host{done} ]; do sleep 0.1; done
    """
    with DaemonProcess(tmp_path) as daemon:
        socket_path = str(daemon.socket_path)
        options = ("--socket-path", socket_path, "--memory", "512M", "--kernel-log", str(log))
        with ProgramProcess("guest.linux", *options, "--", "sh", "-c", script) as guest:
            guest.events.wait("booted", deadline=90)
            until(lambda: "filled" in guest.stdout(), "the file is written", deadline=60)
            filled = time.monotonic()
            until(lambda: peak_of(guest) > FILLED, "the memory is seen to be used")
            seen.touch()
            until(lambda: "deleted" in guest.stdout(), "the file is deleted", deadline=60)
            deleted = time.monotonic()

            def resident() -> int:
                samples = [event for event in guest.events.all("memory") if event["t"] > deleted]
                return int(samples[-1]["resident_bytes"]) if samples else MEMORY

            until(lambda: resident() < LEFT, f"less than {LEFT:.0f} bytes resident", deadline=WITHIN)
            done.touch()
            assert guest.wait(60) == 0
            assert guest.stdout() == "filled\ndeleted\n"
            assert guest.events.all("finished")[0]["kernel_warnings"] == 0
        reports = daemon.events.all("report")
        assert sum(event["discarded_bytes"] for event in reports if event["t"] > filled) > FILLED - LEFT
        assert sum(event["refused_bytes"] for event in reports) == 0
    assert kernel_warnings(log.read_text(encoding="utf-8", errors="replace")) == []
