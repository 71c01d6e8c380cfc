"""The generic cases against real back-ends: all of them pass with ours; those of others are judged to the end."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from scripts.check.generic.all_cases import GENERIC_CASES
from scripts.check.generic.backend import open_backend
from scripts.check.run import run_cases
from scripts.check.verdict import Result, Verdict
from tests.harness.processes import DaemonProcess

EDGES = {*range(1, 92), 142, 143, 147, 148, 149, 152}
"""The edge cases that have to do with any back-end."""

ELSEWHERE = {
    20: "only legal where bit 30 is not offered, which a back-end is not asked to do",
    33: "a balloon's queues",
    34: "a balloon's poison value",
    46: "needs huge pages",
    49: "a balloon's discards",
    56: "kills whatever maps memory, by SIGBUS",
    57: "a balloon's discards",
    68: "a packed ring that only User Mode Linux starts so",
    70: "needs a buffer that the device gives back",
    76: "needs a buffer that the device gives back",
    77: "needs a buffer that the device gives back",
    85: "a balloon's discards",
    89: "a balloon's queues",
    90: "a balloon's queues",
    91: "needs a buffer that the device gives back",
}
"""Those of them that cannot be tried without knowing the device."""


def run(path: Path, start: str | None = None, patterns: tuple[str, ...] = ()) -> dict[str, Result]:
    """Return the results of the cases, by name."""
    with open_backend(path, start) as backend:
        return {result.case: result for result in run_cases(GENERIC_CASES.chosen(patterns), backend.fresh)}


def test_every_edge_case_has_a_case_or_a_reason() -> None:
    tried = {number for case in GENERIC_CASES for number in case.edges}
    assert EDGES - tried == set(ELSEWHERE)


def test_quick_run_is_most_of_them() -> None:
    quick = GENERIC_CASES.chosen([], quick=True)
    assert len(GENERIC_CASES) > len(quick) > 0.9 * len(GENERIC_CASES)


@pytest.mark.processes
def test_our_daemon_passes_all(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, "--in-band", "on")
    try:
        results = run(daemon.socket_path)
        assert {name: result.reason for name, result in results.items() if result.verdict is not Verdict.PASS} == {}
        assert len(results) == len(GENERIC_CASES)
    finally:
        daemon.kill()


def judged_to_the_end(path: Path, command: str) -> dict[str, Result]:
    """Return the results of all cases with a foreign back-end that a command starts."""
    results = run(path, command)
    assert len(results) == len(GENERIC_CASES)
    assert not [name for name, result in results.items() if "the target is gone" in result.reason]
    counts = Counter(result.verdict for result in results.values())
    assert counts[Verdict.PASS] > 30, counts
    return results


@pytest.mark.processes
def test_storage_daemon(tmp_path: Path) -> None:
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        pytest.skip("qemu-storage-daemon is not installed (Debian: qemu-system-common)")
    disk, path = tmp_path / "disk", tmp_path / "socket"
    disk.write_bytes(bytes(1 << 20))
    results = judged_to_the_end(
        path,
        f"{program} --blockdev driver=file,node-name=disk,filename={disk} --export type=vhost-user-blk,id=export,"
        f"node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path={path}",
    )
    # What it does right by the text, and what it cannot be forgiven, in every version that was tried.
    for name in (
        "message-in-pieces",
        "protocol-features-first",
        "orders-of-setting-up",
        "all-queues",
        "base-comes-back",
    ):
        assert results[name].verdict is Verdict.PASS, results[name].reason
    assert results["unknown-request"].verdict is not Verdict.PASS


@pytest.mark.processes
def test_back_end_that_serves_one_front_end_ever(tmp_path: Path) -> None:
    """It is started again for each case; virtiofsd is one."""
    program = shutil.which("virtiofsd", path="/usr/libexec:/usr/lib/qemu:/usr/bin")
    if program is None:
        pytest.skip("virtiofsd is not installed")
    shared, path = tmp_path / "shared", tmp_path / "socket"
    shared.mkdir()
    sandbox = "-o sandbox=chroot -o source=" if "/qemu/" in program else "--sandbox=none --shared-dir="
    names = ("message-*", "two-messages-at-once", "base-comes-back", "session-leaves-nothing", "nothing-asked-before")
    results = run(path, f"{program} --socket-path={path} {sandbox}{shared}", names)
    for name in ("two-messages-at-once", "base-comes-back", "session-leaves-nothing", "nothing-asked-before"):
        assert results[name].verdict is Verdict.PASS, results[name].reason
