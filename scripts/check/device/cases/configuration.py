"""The configuration space: little-endian, readable at any place, and written by a driver in two fields only."""

import struct
from typing import Final

from protocol.balloon_config import BalloonConfig
from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import DeviceConfig
from protocol.virtio_balloon import CONFIG_SIZE
from scripts.check.device.trial import SUITE, Trial
from scripts.check.machine.deadline import becomes_true
from scripts.check.verdict import Failed, Found, require

ACTUAL_AT: Final = 4


@SUITE.case("config-read", clauses=("G-12", "BC-1"), edges=(136,), peers=("villain/L0037",), quick=True)
def read(trial: Trial) -> None:
    """Each field can be read before the queues are served, and reads the same again."""
    machine = trial.machine(run=False)
    for offset in (0, 4):
        first, second = machine.read_config(offset, 4), machine.read_config(offset, 4)
        require(first == second, f"the field at {offset} reads {first.hex()}, then {second.hex()}", "G-12")


@SUITE.case(
    "config-windows",
    clauses=("G-13",),
    edges=(136,),
    peers=("public/rust-vmm-vhost-29", "stratovirt/config_001"),
    quick=True,
)
def windows(trial: Trial) -> None:
    """Any part of the space reads as the same bytes."""
    machine = trial.machine()
    machine.write_config(ACTUAL_AT, b"\1\2\3\4")
    whole = machine.read_config(0, 8)
    for offset in range(8):
        for length in range(1, 9 - offset):
            part = machine.read_config(offset, length)
            require(
                part == whole[offset : offset + length],
                f"{length} bytes at {offset} are {part.hex()}, the space begins with {whole.hex()}",
                "G-12",
            )


@SUITE.case("config-actual", clauses=("BC-1", "BI-11"), edges=(137,), peers=("villain/L0038",), quick=True)
def actual(trial: Trial) -> None:
    """What a driver writes into ``actual`` is there, little-endian, and nothing else changes."""
    machine = trial.machine()
    before = machine.read_config(0, 8)
    machine.write_config(ACTUAL_AT, struct.pack("<I", 0x0001_0203))
    machine.barrier()
    after = machine.read_config(0, 8)
    require(after[:4] == before[:4], f"num_pages was {before[:4].hex()} and is {after[:4].hex()}", "BC-1")
    if after[4:] != struct.pack("<I", 0x0001_0203):
        raise Found(f"actual was written as 03020100 and reads {after[4:].hex()}", "BC-1")


@SUITE.case("config-write-by-bytes", clauses=("BC-1", "F-config-write"), quick=True)
def by_bytes(trial: Trial) -> None:
    """``actual`` that is written byte by byte, as a legacy driver may, is there as a whole."""
    machine = trial.machine()
    for number, byte in enumerate(b"\1\2\3\4"):
        machine.write_config(ACTUAL_AT + number, bytes([byte]))
    machine.barrier()
    seen = machine.read_config(ACTUAL_AT, 4)
    if seen != b"\1\2\3\4":
        raise Found(f"actual was written byte by byte as 01020304 and reads {seen.hex()}", "F-config-write")


@SUITE.case("config-write-whole-window", clauses=("F-config-write",), edges=(137,), quick=True)
def whole_window(trial: Trial) -> None:
    """A write over the whole space, as QEMU's generic device sends it, changes what a driver may write and no more."""
    machine = trial.machine()
    before = BalloonConfig.parse(machine.read_config(0, 8))
    written = BalloonConfig(num_pages=0x1234, actual=77, free_page_hint_cmd_id=9, poison_val=5)
    machine.write_config(0, written.build()[:8])
    machine.barrier()
    after = BalloonConfig.parse(machine.read_config(0, 8))
    if after.num_pages != before.num_pages:
        raise Found(f"a driver can set num_pages: it was {before.num_pages} and is {after.num_pages}", "F-config-write")
    if after.actual != 77:
        raise Found(f"actual was written as 77 in a wider write and reads {after.actual}", "F-config-write")
    machine.check_alive()


@SUITE.case("config-write-flags", clauses=("V-45", "F-config-flags"), edges=(138,), quick=True)
def write_flags(trial: Trial) -> None:
    """A write with the flag that Cloud Hypervisor sets takes effect as one without."""
    machine = trial.vhost_user()
    for flags in (0, 1):
        data = struct.pack("<I", 40 + flags)
        machine.connection.ask(FrontendRequest.SET_CONFIG, DeviceConfig(offset=ACTUAL_AT, flags=flags, data=data))
        seen = machine.read_config(ACTUAL_AT, 4)
        if seen != data:
            raise Found(f"a write of {data.hex()} with flags {flags} reads {seen.hex()}", "F-config-flags")


@SUITE.case("config-beyond", clauses=("F-config-size",), edges=(136,), quick=True)
def beyond(trial: Trial) -> None:
    """Reads of the whole space and beyond are answered with as many bytes, or refused, and do no harm."""
    machine = trial.vhost_user()
    seen: dict[int, int | None] = {}
    for size in (8, 12, CONFIG_SIZE, 24, 60, 256):
        request = DeviceConfig(offset=0, flags=0, data=bytes(size))
        answer = machine.connection.query(FrontendRequest.GET_CONFIG, request)
        seen[size] = len(answer.data) if isinstance(answer, DeviceConfig) else None
    wrong = {size: length for size, length in seen.items() if length not in (size, 0, None)}
    if wrong:
        raise Failed(f"GET_CONFIG was answered with another size: {wrong}", "V-44")
    if any(not seen[size] for size in (8, 12, CONFIG_SIZE)):
        raise Found(f"bytes that GET_CONFIG answers for each size asked for: {seen}", "F-config-size")


@SUITE.case("config-huge-actual", clauses=("M-safe",), peers=("public/cloud-hypervisor-7903",), quick=True)
def huge_actual(trial: Trial) -> None:
    """A driver's word of a balloon larger than any memory does no harm."""
    machine = trial.machine()
    machine.write_config(ACTUAL_AT, b"\xff\xff\xff\xff")
    machine.barrier()
    machine.check_alive()


@SUITE.case(
    "config-resize-tells",
    clauses=("G-3", "BI-1"),
    edges=(87,),
    peers=("firecracker/num_pages", "villain/L0200"),
    quick=True,
)
def resize_tells(trial: Trial) -> None:
    """A request for a balloon of another size is shown in num_pages and told by a configuration interrupt."""
    machine = trial.machine()
    pages = 4096
    assert machine.memory.size // PAGE_SIZE > pages
    trial.device.resize(machine, pages)
    require(becomes_true(machine.config_changed), "the device told of no change of its configuration", "G-3")
    seen = BalloonConfig.parse(machine.read_config(0, 8)).num_pages
    if seen != pages:
        raise Found(f"a balloon of {pages} pages was asked for, and num_pages is {seen}", "BI-1")
