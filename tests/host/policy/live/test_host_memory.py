"""Budget, use and pressure, from files as the kernel writes them."""

from pathlib import Path

import pytest

from host.policy.live import host_memory
from host.policy.live.host_memory import HostMemory, find_host_memory
from protocol.errors import BalloonError
from protocol.units import GIB, MIB


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of 16 GiB without cgroups."""
    (tmp_path / "meminfo").write_text("MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n")
    (tmp_path / "pressure").write_text("some avg10=1.25 avg60=0.10 avg300=0.00 total=7\nfull avg10=0.00 total=1\n")
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "cgroup").mkdir()
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "PRESSURE", tmp_path / "pressure")
    monkeypatch.setattr(host_memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(host_memory, "MOUNT", tmp_path / "cgroup")
    return tmp_path


def group(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("memory_", "memory.", 1)).write_text(f"{text}\n")
    return directory


def test_host_without_a_limit_has_what_it_has(system: Path) -> None:
    memory = find_host_memory(None, None)
    assert memory == HostMemory(16 * GIB)
    assert (memory.used(), memory.pressure()) == (12 * GIB, 1.25)


def test_stated_budget_is_of_the_machines_alone(system: Path) -> None:
    memory = find_host_memory(8 * GIB, None)
    assert (memory.budget, memory.used(), memory.pressure()) == (8 * GIB, None, 1.25)


def test_smallest_limit_above_this_process_counts_version_2(system: Path) -> None:
    (system / "own").write_text("0::/slice/service\n")
    outer = group(
        system / "cgroup/slice",
        memory_max=str(4 * GIB),
        memory_current=str(3 * GIB),
        memory_stat=f"anon 1\ninactive_file {GIB}",
        memory_pressure="some avg10=33.50 avg60=0 avg300=0 total=0",
    )
    group(outer / "service", memory_max="max", memory_current="5")
    memory = find_host_memory(None, None)
    assert memory == HostMemory(4 * GIB, outer)
    assert (memory.used(), memory.pressure()) == (2 * GIB, 33.5)


def test_smallest_limit_above_this_process_counts_version_1(system: Path) -> None:
    (system / "own").write_text("5:cpu,cpuacct:/x\n4:memory:/box\n0::/\n")
    box = group(
        system / "cgroup/memory/box",
        memory_limit_in_bytes=str(2 * GIB),
        memory_usage_in_bytes=str(GIB),
        memory_stat=f"inactive_file 9\ntotal_inactive_file {256 * MIB}",
    )
    group(system / "cgroup/memory", memory_limit_in_bytes=str(1 << 62))
    memory = find_host_memory(None, None)
    assert (memory.budget, memory.cgroup) == (2 * GIB, box)
    assert (memory.used(), memory.pressure()) == (768 * MIB, None)


def test_cgroup_may_be_named(system: Path) -> None:
    box = group(system / "box", memory_max="max", memory_current=str(GIB))
    assert find_host_memory(4 * GIB, box) == HostMemory(4 * GIB, box)
    with pytest.raises(BalloonError, match="has no limit: state one with --budget"):
        find_host_memory(None, box)
    (box / "memory.max").write_text(f"{3 * GIB}\n")
    assert find_host_memory(None, box) == HostMemory(3 * GIB, box)
    with pytest.raises(BalloonError, match="is not the directory of a memory cgroup"):
        find_host_memory(None, system)


def test_kernel_without_pressure_or_with_an_odd_meminfo(system: Path) -> None:
    (system / "pressure").unlink()
    assert find_host_memory(None, None).pressure() is None
    (system / "meminfo").write_text("MemTotal: 1 kB\n")
    with pytest.raises(BalloonError, match="has no MemTotal and MemAvailable"):
        find_host_memory(None, None)


def test_cgroup_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BalloonError, match="does not say how much memory it uses"):
        HostMemory(GIB, tmp_path / "gone").used()
