"""What SIGUSR1 prints: one line about the daemon, one about each virtual machine."""

from dataclasses import replace

from host.control.daemon_status import daemon_line
from host.control.status import vm_lines
from host.control.vm_facts import VmInfo
from host.vhost_user.device_setup import DeviceSetup
from protocol.virtio_balloon import QueueDialect

MIB = 1 << 20
IDLE = VmInfo(
    pid=7,
    name="",
    age=3.2,
    memory_bytes=512 * MIB,
    guest_bytes=512 * MIB,
    num_pages=0,
    target_pages=0,
    actual=0,
    features=0,
    driver_ready=False,
    setup=DeviceSetup(None, QueueDialect.NEGOTIATED, {}),
)
BUSY = replace(
    IDLE,
    name="qemu",
    driver_ready=True,
    num_pages=25600,
    actual=12800,
    reports=3,
    reported_bytes=12 * MIB,
    discarded_bytes=8 * MIB,
    refused={"unaligned": 2, "out_of_range": 1},
    last_report=41.0,
)


def test_status_has_a_line_about_the_daemon_and_one_about_each_machine() -> None:
    line = daemon_line(2, sessions=9, uptime=61.4, events=None)
    assert line == "2 connected, 9 so far, in 61 s; events are written"
    assert list(vm_lines({5: BUSY, 2: IDLE})) == [
        "vm 2 (unnamed, process 7): 512.0 MiB, no driver, for 3 s; 0 reports of 0 B, 0 B discarded",
        "vm 5 (qemu, process 7): 512.0 MiB, driver at work, for 3 s; balloon 50.0 MiB of 100.0 MiB; "
        "3 reports of 12.0 MiB, the last 41 s ago, 8.0 MiB discarded; refused out_of_range 1, unaligned 2",
    ]


def test_status_says_why_no_events_are_written() -> None:
    line = daemon_line(0, sessions=0, uptime=0.0, events="No space left on device")
    assert line == "0 connected, 0 so far, in 0 s; no events: No space left on device"
