"""What the host carries for a machine, read from the machine's open files."""

import os
import subprocess
import sys
from pathlib import Path

from protocol.units import MIB
from scripts.scenario.real.residency import MemoryFile

MACHINE = """
import os, sys
descriptor = os.memfd_create("ram")
os.ftruncate(descriptor, 4 << 20)
os.pwrite(descriptor, bytes(1 << 20), 0)
print("ready", flush=True)
sys.stdin.readline()
os.pwrite(descriptor, bytes(3 << 20), 0)
print("grown", flush=True)
sys.stdin.readline()
"""


def test_memory_is_followed_and_goes_with_its_machine() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MACHINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as machine:
        assert machine.stdin is not None
        assert machine.stdout is not None
        memory = MemoryFile(4 * MIB)
        assert machine.stdout.readline() == "ready\n"
        assert memory.resident_bytes(machine.pid) == MIB
        assert list(memory.residency(machine.pid) or ()) == [1] * 256 + [0] * 768
        machine.stdin.write("\n")
        assert machine.stdout.readline() == "grown\n"
        assert memory.resident_bytes(machine.pid) == 3 * MIB
        machine.kill()
        machine.wait()
        assert memory.resident_bytes(machine.pid) is None
        assert memory.residency(machine.pid) is None


def test_memory_is_at_the_end_of_a_longer_file() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MACHINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as machine:
        assert machine.stdin is not None
        assert machine.stdout is not None
        assert machine.stdout.readline() == "ready\n"
        machine.stdin.write("\n")
        assert machine.stdout.readline() == "grown\n"
        # Three of four MiB: of the last two, the first.
        assert list(MemoryFile(2 * MIB).residency(machine.pid) or ()) == [1] * 256 + [0] * 256
        machine.kill()


def test_process_without_such_a_file_tells_nothing() -> None:
    assert MemoryFile(1 << 50).resident_bytes(os.getpid()) is None


def test_file_that_is_not_memory_is_not_taken_for_it(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(4 * MIB)
    directory = tmp_path / "7" / "fd"
    directory.mkdir(parents=True)
    (directory / "3").symlink_to(large)
    (directory / "4").symlink_to("/dev/null")
    (directory / "5").symlink_to("missing")
    assert MemoryFile(4 * MIB, tmp_path).resident_bytes(7) is None
