"""The host's budget: where a memory cgroup can be made, its files, and counting without one."""

import os
import subprocess
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from protocol.units import MIB
from scripts.scenario.real import budget as module
from scripts.scenario.real.budget import (
    V1,
    V2,
    AccountedBudget,
    CgroupBudget,
    candidates,
    make_budget,
    make_cgroup,
    memory_for_us,
)
from scripts.scenario.real.leftovers import remove_old_groups

V1_MOUNT = "31 24 0:26 / /sys/fs/cgroup/memory rw,relatime shared:11 - cgroup cgroup rw,memory"
CPU_MOUNT = "32 24 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
V2_MOUNT = "30 24 0:25 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
CONTAINER_MOUNT = "30 24 0:25 /docker/1234 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"


def test_session_of_version_2_tries_its_own_group_then_those_above() -> None:
    own = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/terminal.scope\n"
    paths = [str(path) for path, names in candidates(own, V2_MOUNT) if names is V2]
    base = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service"
    assert paths[:3] == [f"{base}/app.slice/terminal.scope", f"{base}/app.slice", base]
    assert paths[-1] == "/sys/fs/cgroup"


def test_version_1_looks_at_the_memory_hierarchy_only() -> None:
    own = "4:memory:/a/b\n1:cpu:/x\n0::/\n"
    found = candidates(own, f"{CPU_MOUNT}\n{V1_MOUNT}\n")
    assert found == [(Path("/sys/fs/cgroup/memory") / path, V1) for path in ("a/b", "a", "")]


@pytest.mark.parametrize(("own", "inside"), [("/docker/1234/child", "child"), ("/docker/1234", ""), ("/other", "")])
def test_container_sees_its_part_of_the_hierarchy_as_the_whole(own: str, inside: str) -> None:
    found = candidates(f"4:memory:{own}\n", CONTAINER_MOUNT)
    assert found[0] == (Path("/sys/fs/cgroup/memory") / inside, V1)


def test_hierarchy_without_a_memory_controller_has_no_candidate() -> None:
    assert candidates("1:cpu:/x\n", CPU_MOUNT) == []
    assert candidates("1:cpu:/x\n", V1_MOUNT) == []


@pytest.mark.parametrize(("limit", "most"), [("max", 2048), ("1048576", 1024), ("9223372036854771712", 2048)])
def test_memory_for_us_is_what_is_available_within_the_container(limit: str, most: int, tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    (tmp_path / "self/cgroup").write_text("0::/a\n")
    (tmp_path / "self/mountinfo").write_text(f"30 24 0:25 / {tmp_path} rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/memory.max").write_text(f"{limit}\n")
    assert memory_for_us(tmp_path) == most * 1024


def test_version_2_group_whose_children_get_no_memory_controller_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("cpu pids\n")
    assert make_cgroup(tmp_path, V2, MIB) is None
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.subtree_control"]


def test_directory_that_is_no_cgroup_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    # An ordinary directory takes every write, but has no counters to read: not a group.
    parent = tmp_path / "missing"
    assert make_cgroup(parent, V1, MIB) is None
    assert not parent.exists()


@pytest.mark.parametrize("names", [V1, V2])
def test_group_gets_its_limit_and_tells_its_use(names: module.CgroupNames, tmp_path: Path) -> None:
    group = CgroupBudget(tmp_path, names, 64 * MIB)
    assert (tmp_path / names.limit).read_text() == str(64 * MIB)
    (tmp_path / names.used).write_text("12345\n")
    (tmp_path / names.events).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert group.used_bytes() == 12345
    assert group.kernel_kills() == 2
    assert group.source == f"memory cgroup v{names.version}"


def test_kernel_that_does_not_count_kills_has_none(tmp_path: Path) -> None:
    (tmp_path / V1.events).write_text("oom_kill_disable 0\nunder_oom 0\n")
    assert CgroupBudget(tmp_path, V1, MIB).kernel_kills() == 0


@pytest.mark.parametrize(("expendable", "score"), [(True, "1000"), (False, None)])
def test_wrapped_command_enters_the_group_and_keeps_its_arguments(
    expendable: bool, score: str | None, tmp_path: Path
) -> None:
    group = CgroupBudget(tmp_path, V1, MIB)
    command = group.wrap(["sh", "-c", 'cat /proc/self/oom_score_adj; echo "$1"', "x", "a  b"], expendable=expendable)
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert (tmp_path / "cgroup.procs").read_text() == "0\n"
    assert output[1] == "a  b"
    assert output[0] == (score or Path("/proc/self/oom_score_adj").read_text().strip())


def test_command_that_cannot_enter_the_group_does_not_run(tmp_path: Path) -> None:
    group = CgroupBudget(tmp_path, V1, MIB)
    (tmp_path / "cgroup.procs").mkdir()
    done = subprocess.run(group.wrap(["echo", "ran"], expendable=False), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""


def test_accounting_is_left_to_the_run() -> None:
    budget = AccountedBudget(MIB)
    assert (budget.limit_bytes, budget.used_bytes(), budget.kernel_kills()) == (MIB, None, 0)  # type: ignore[func-returns-value]
    assert budget.wrap(["a", "b"], expendable=True) == ["a", "b"]


def populate(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Let each new directory have ``files``, as the kernel's groups have theirs."""
    mkdir = Path.mkdir

    def mkdir_with_files(path: Path) -> None:
        mkdir(path)
        for name, text in files.items():
            (path / name).write_text(text)

    monkeypatch.setattr(Path, "mkdir", mkdir_with_files)
    monkeypatch.setattr(module, "REMOVE_SECONDS", 0.0)


V2_FILES = {"memory.current": "4096\n", "memory.events": "low 0\nmax 3\noom 1\noom_kill 1\n", "memory.pressure": ""}


def test_group_of_version_2_is_made_below_one_that_hands_the_controller_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    populate(monkeypatch, V2_FILES)
    budget = make_cgroup(tmp_path, V2, 64 * MIB)
    assert budget is not None
    group = tmp_path / f"vhost-user-balloon-run-{os.getpid()}"
    assert (group / "memory.max").read_text() == str(64 * MIB)
    assert (group / "memory.swap.max").read_text() == "0"
    assert (group / "cgroup.procs").read_text() == "0\n"
    assert (budget.used_bytes(), budget.kernel_kills()) == (4096, 1)
    assert budget.pressure_file == group / "memory.pressure"


def test_limit_that_cannot_be_written_makes_no_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    populate(monkeypatch, {})
    write_text = Path.write_text

    def refuse(path: Path, text: str) -> int:
        if path.name == "memory.max":
            raise PermissionError(13, "Permission denied")
        return write_text(path, text)

    monkeypatch.setattr(Path, "write_text", refuse)
    assert make_cgroup(tmp_path, V2, MIB) is None
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.subtree_control"]


def test_groups_of_two_runs_at_once_stand_side_by_side(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    populate(monkeypatch, V2_FILES)
    other = os.getppid()  # a process that lives
    for pid in (os.getpid(), other):
        monkeypatch.setattr("scripts.scenario.real.budget.os.getpid", lambda pid=pid: pid)
        remove_old_groups(tmp_path)
        assert make_cgroup(tmp_path, V2, MIB) is not None
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        f"vhost-user-balloon-run-{pid}" for pid in (os.getpid(), other)
    }


def test_script_counts_without_a_cgroup_unless_one_was_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "candidates", lambda own, mounts: [])
    assert make_budget("auto", MIB).source == "this script's accounting"
    assert make_budget("accounting", MIB).source == "this script's accounting"
    with pytest.raises(BalloonError, match="no memory cgroup can be made here"):
        make_budget("cgroup", MIB)


def test_real_group_holds_its_processes_to_the_limit_and_goes_away() -> None:
    budget = make_budget("auto", 64 * MIB)
    if not isinstance(budget, CgroupBudget):
        pytest.skip("this user may not make a memory cgroup here")
    hog = "import mmap, os; m = mmap.mmap(-1, 128 << 20); [m.write(b'x' * 4096) for _ in range(128 << 8)]"
    with budget:
        done = subprocess.run(budget.wrap(["python3", "-c", hog], expendable=True), capture_output=True, check=False)
        assert done.returncode == -9
        assert budget.kernel_kills() >= 1
        assert budget.used_bytes() <= 64 * MIB
    name = f"vhost-user-balloon-run-{os.getpid()}"
    assert not any(path.name == name for root in ("/sys/fs/cgroup",) for path in Path(root).rglob(name))
