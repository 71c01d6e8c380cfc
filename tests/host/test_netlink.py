"""The cost of a process: the kernel's structure decoded exactly, a real child measured, /proc as the second source."""

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from construct import Array, Bytes, Construct, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct
from pyroute2.netlink.exceptions import NetlinkError

from host import netlink
from host.netlink import Delay, decode_taskstats, process_cost
from protocol.errors import BalloonError
from protocol.units import MIB

TOUCHED = 50 * MIB

# The structure as the kernel documents it, field by field, to be compared with the offsets in the module.
HEAD: "list[Construct[Any, Any]]" = [
    "version" / Int16ul,
    Padding(2),
    "ac_exitcode" / Int32ul,
    "ac_flag" / Int8ul,
    "ac_nice" / Int8ul,
    Padding(6),
]
IDENTITY: "list[Construct[Any, Any]]" = [
    "cpu_run_real_total" / Int64ul,
    "cpu_run_virtual_total" / Int64ul,
    "ac_comm" / Bytes(32),
    "ac_sched" / Int8ul,
    Padding(7),
    "ac_uid" / Int32ul,
    "ac_gid" / Int32ul,
    "ac_pid" / Int32ul,
    "ac_ppid" / Int32ul,
    "ac_btime" / Int32ul,
    Padding(4),
    "times" / Array(3, Int64ul),
    "ac_minflt" / Int64ul,
    "ac_majflt" / Int64ul,
    "coremem" / Int64ul,
    "virtmem" / Int64ul,
    "hiwater_rss" / Int64ul,
    "hiwater_vm" / Int64ul,
    "input_output" / Array(7, Int64ul),
    "nvcsw" / Int64ul,
    "nivcsw" / Int64ul,
    "scaled" / Array(3, Int64ul),
]


def delays(per_delay: int) -> "list[Construct[Any, Any]]":
    """Return the fields after the identity; a delay has ``per_delay`` numbers: 2, or 4 in version 15."""
    return [
        "freepages" / Array(per_delay, Int64ul),
        "thrashing" / Array(per_delay, Int64ul),
        "ac_btime64" / Int64ul,
        "compact" / Array(per_delay, Int64ul),
        "ac_tgid" / Int32ul,
        Padding(4),
        "ac_tgetime" / Int64ul,
        "ac_exe" / Array(2, Int64ul),
        "wpcopy" / Array(per_delay, Int64ul),
        "irq" / Array(per_delay, Int64ul),
    ]


TASKSTATS_14 = Struct(*HEAD, "waits" / Array(3 * 2, Int64ul), *IDENTITY, *delays(2))
TASKSTATS_15 = Struct(*HEAD, "waits" / Array(3 * 4, Int64ul), *IDENTITY, *delays(4))
TASKSTATS_16 = Struct(*HEAD, "waits" / Array(3 * 2, Int64ul), *IDENTITY, *delays(2), "extremes" / Array(16, Int64ul))


def built(layout: "Construct[Any, Any]", version: int, per_delay: int, waits: int) -> bytes:
    """Build a structure in which every number is different, so that a wrong offset cannot go unnoticed."""
    tail = [0] * (per_delay - 2)
    return layout.build(
        {
            "version": version,
            "ac_exitcode": 1,
            "ac_flag": 2,
            "ac_nice": 3,
            "waits": range(100, 100 + waits),
            "cpu_run_real_total": 200,
            "cpu_run_virtual_total": 201,
            "ac_comm": b"guest".ljust(32, b"\0"),
            "ac_sched": 4,
            "ac_uid": 5,
            "ac_gid": 6,
            "ac_pid": 7,
            "ac_ppid": 8,
            "ac_btime": 9,
            "times": [10, 11, 12],
            "ac_minflt": 13,
            "ac_majflt": 14,
            "coremem": 15,
            "virtmem": 16,
            "hiwater_rss": 1 << 20,
            "hiwater_vm": 1 << 21,
            "input_output": range(20, 27),
            "nvcsw": 27,
            "nivcsw": 28,
            "scaled": [29, 30, 31],
            "freepages": [41, 1_500_000_000, *tail],
            "thrashing": [42, 2_500_000_000, *tail],
            "ac_btime64": 50,
            "compact": [43, 3_500_000_000, *tail],
            "ac_tgid": 51,
            "ac_tgetime": 52,
            "ac_exe": [53, 54],
            "wpcopy": [44, 4_500_000_000, *tail],
            "irq": [45, 5_500_000_000, *tail],
            "extremes": range(60, 76),
        }
    )


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (built(TASKSTATS_14, 14, 2, 6), 432),
        (built(TASKSTATS_15, 15, 4, 12), 560),
        (built(TASKSTATS_16, 16, 2, 6), 560),
        (built(TASKSTATS_16, 17, 2, 6) + b"\xff" * 24, 584),
    ],
    ids=["v14", "v15", "v16", "later"],
)
def test_fields_are_where_the_kernel_puts_them(data: bytes, size: int) -> None:
    assert len(data) == size
    statistics = decode_taskstats(data)
    assert statistics.version == struct.unpack_from("<H", data)[0]
    assert statistics.peak_resident_bytes == 1 << 30
    assert statistics.freepages == Delay(count=41, seconds=1.5)
    assert statistics.thrashing == Delay(count=42, seconds=2.5)
    assert statistics.compact == Delay(count=43, seconds=3.5)
    assert statistics.wpcopy == Delay(count=44, seconds=4.5)


def test_delay_that_an_old_kernel_does_not_have_is_unknown() -> None:
    old = struct.pack("<H", 8) + built(TASKSTATS_14, 8, 2, 6)[2:328]
    statistics = decode_taskstats(old)
    assert statistics.freepages == Delay(count=41, seconds=1.5)
    assert statistics.thrashing is None
    assert statistics.wpcopy is None


@pytest.mark.parametrize("length", [0, 1, 2, 207])
def test_structure_that_ends_early_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="struct taskstats"):
        decode_taskstats(built(TASKSTATS_16, 16, 2, 6)[:length])


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that prints its peak, touches 50 MiB, gives them back, and waits."""
    code = f"""
import mmap, sys
[peak] = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]
print(peak, flush=True)
memory = mmap.mmap(-1, {TOUCHED})
for offset in range(0, {TOUCHED}, 4096):
    memory[offset] = 1
memory.close()
print("ready", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-I", "-c", code], stdin=-1, stdout=-1, text=True)
    with process:
        yield process
        process.kill()


def base_of(child: subprocess.Popen[str]) -> int:
    """Wait until the child has touched its memory; return its peak from before, in bytes."""
    assert child.stdout is not None
    base = int(child.stdout.readline()) * 1024
    assert child.stdout.readline() == "ready\n"
    return base


def test_child_that_touches_memory_shows_it_as_its_peak(child: subprocess.Popen[str]) -> None:
    base = base_of(child)
    cost = process_cost(child.pid)
    assert cost.pid == child.pid
    assert cost.peak_resident_bytes is not None
    assert cost.peak_resident_bytes - base == pytest.approx(TOUCHED, rel=0.1)
    assert cost.minor_faults > 0
    assert cost.source.startswith(("taskstats v", "/proc (taskstats: "))


def test_sources_agree(child: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    base_of(child)
    first = process_cost(child.pid)

    def refuse(pid: int) -> tuple[bytes, bytes]:
        raise NetlinkError(1, "Operation not permitted")

    monkeypatch.setattr(netlink, "query_taskstats", refuse)
    second = process_cost(child.pid)
    assert second.source == "/proc (taskstats: Operation not permitted)"
    assert second.peak_resident_bytes == first.peak_resident_bytes
    assert second.minor_faults == first.minor_faults
    assert second.direct_reclaim_count is None
    assert second.direct_reclaim_seconds is None


def test_figures_come_from_proc_without_a_netlink_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> tuple[bytes, bytes]:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(netlink, "query_taskstats", refuse)
    assert "Address family not supported" in process_cost(os.getpid()).source


@pytest.mark.parametrize(("enabled", "expected"), [("1\n", (41, 1.5)), ("0\n", (None, None))])
def test_delay_is_a_number_only_while_the_kernel_measures_it(
    enabled: str, expected: tuple[object, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = built(TASKSTATS_16, 16, 2, 6)
    monkeypatch.setattr(netlink, "query_taskstats", lambda pid: (data, data))
    sysctl = tmp_path / "sys/kernel"
    sysctl.mkdir(parents=True)
    (sysctl / "task_delayacct").write_text(enabled)
    process = tmp_path / "7"
    process.mkdir()
    (process / "stat").write_text("7 (a b) (c) S 1 7 7 0 -1 4194304 123 9 45 9 0 0\n")
    (process / "status").write_text("Name:\ta b) (c\nVmHWM:\t     2048 kB\n")
    cost = process_cost(7, tmp_path)
    assert cost.source == "taskstats v16"
    assert (cost.minor_faults, cost.major_faults) == (123, 45)
    assert cost.peak_resident_bytes == 1 << 30
    assert (cost.direct_reclaim_count, cost.direct_reclaim_seconds) == expected


def test_missing_process_is_one_error() -> None:
    with pytest.raises(BalloonError, match="no process 4194305"):
        process_cost(4194305)


def test_process_that_has_ended_has_an_unknown_peak() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.read()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_cost(process.pid).peak_resident_bytes is None


def test_descriptors_are_all_closed() -> None:
    process_cost(os.getpid())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        process_cost(os.getpid())
    assert len(os.listdir("/proc/self/fd")) == before
