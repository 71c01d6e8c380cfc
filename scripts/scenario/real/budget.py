"""The host's memory budget for the virtual machines: kept by the kernel if permitted, otherwise by counting.

A memory cgroup, version 1 or 2, makes the limit real: a guest's pages are charged to the process that touches them, and
a guest that grows beyond the limit meets the kernel's OOM killer. Where no group can be made, the run adds up what the
guests have resident and stops the guest that grows too far.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from protocol.errors import BalloonError
from scripts.scenario.real.leftovers import GROUP_PREFIX, remove_old_groups

PRESSURE: Final = Path("/proc/pressure/memory")

REMOVE_SECONDS: Final = 3.0
"""How long a group may stay busy after its last process was reaped."""


class Budget(Protocol):
    """A limit for several virtual machines together. A context manager: leaving it removes what it made."""

    source: str
    """What keeps the limit, for people."""

    limit_bytes: int

    pressure_file: Path
    """Where the kernel tells the pressure on memory: of this limit, or else of the whole machine."""

    def used_bytes(self) -> int | None:
        """Return what the kernel counts against the limit at present, None where the run itself has to add it up."""

    def wrap(self, argv: Sequence[str], *, expendable: bool) -> list[str]:
        """Return the command that runs ``argv`` under the limit; an ``expendable`` one is the first to be killed."""

    def kernel_kills(self) -> int:
        """Return how many processes the kernel has killed to keep the limit."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class AccountedBudget:
    """The run's own accounting: the sum of the memory that the host holds for the machines."""

    source = "this script's accounting"
    pressure_file = PRESSURE

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes

    def used_bytes(self) -> None:
        """Return None: the kernel does not count."""

    def wrap(self, argv: Sequence[str], *, expendable: bool) -> list[str]:
        """Return the command as it is."""
        return list(argv)

    def kernel_kills(self) -> int:
        """Return 0: the kernel does not keep this limit."""
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupNames:
    """The file names of a version of the memory controller, and the setting that prevents swapping."""

    version: int
    limit: str
    used: str
    events: str
    swap: tuple[tuple[str, str], ...]


V1: Final = CgroupNames(
    version=1,
    limit="memory.limit_in_bytes",
    used="memory.usage_in_bytes",
    events="memory.oom_control",
    swap=(("memory.swappiness", "0"),),
)
V2: Final = CgroupNames(
    version=2, limit="memory.max", used="memory.current", events="memory.events", swap=(("memory.swap.max", "0"),)
)

# Runs in the child before the guest: "0" means the process itself, in both versions.
_ENTER: Final = 'echo 0 >"$1" && if [ "$2" = 1 ]; then echo 1000 >/proc/self/oom_score_adj; fi && shift 2 && exec "$@"'


class CgroupBudget:
    """A memory cgroup of the run's own, removed at the end."""

    def __init__(self, directory: Path, names: CgroupNames, limit_bytes: int) -> None:
        """Set the limit of the existing, empty group ``directory``. Raises OSError where that is not permitted."""
        self.source = f"memory cgroup v{names.version}"
        self.limit_bytes = limit_bytes
        own = directory / "memory.pressure"
        self.pressure_file = own if own.exists() else PRESSURE
        self._directory = directory
        self._names = names
        (directory / names.limit).write_text(str(limit_bytes))
        for name, value in names.swap:
            with contextlib.suppress(OSError):  # a kernel without swap accounting; then there is rarely swap either
                (directory / name).write_text(value)

    def used_bytes(self) -> int:
        """Return what the kernel has charged to the group: guest memory and the guest processes' own."""
        return int((self._directory / self._names.used).read_text())

    def wrap(self, argv: Sequence[str], *, expendable: bool) -> list[str]:
        """Return a command that first moves itself into the group."""
        procs = str(self._directory / "cgroup.procs")
        return ["/bin/sh", "-c", _ENTER, "sh", procs, "1" if expendable else "0", *argv]

    def kernel_kills(self) -> int:
        """Return the kernel's own count of processes it killed in this group."""
        for line in (self._directory / self._names.events).read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = time.monotonic() + REMOVE_SECONDS
        while True:
            try:
                self._directory.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                # Busy: the kernel is still releasing the last process.
                if time.monotonic() > end:
                    return
                time.sleep(0.05)
            else:
                return


def make_budget(kind: str, limit_bytes: int) -> Budget:
    """Return a budget of ``limit_bytes``.

    Args:
        kind: ``cgroup``, ``accounting``, or ``auto`` for a cgroup where the user may make one.
        limit_bytes: for all guests together.

    Raises:
        BalloonError: ``cgroup`` was asked for and cannot be had.
    """
    if kind != "accounting":
        places = candidates(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
        for parent, _ in places:
            remove_old_groups(parent)
        for parent, names in places:
            group = make_cgroup(parent, names, limit_bytes)
            if group is not None:
                return group
        if kind == "cgroup":
            raise BalloonError("no memory cgroup can be made here (--budget accounting needs none)")
    return AccountedBudget(limit_bytes)


def memory_for_us(proc: Path = Path("/proc")) -> int:
    """Return how many bytes this process and its children can have at most: what is available on this machine, or the
    limit of a memory cgroup around us (a container's) where that is less."""
    most = sys.maxsize
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            most = int(line.split()[1]) * 1024
    for group, names in candidates((proc / "self/cgroup").read_text(), (proc / "self/mountinfo").read_text()):
        # No such file in a root group; and no limit is the word "max" in version 2.
        with contextlib.suppress(OSError, ValueError):
            most = min(most, int((group / names.limit).read_text()))
    return most


def candidates(own_groups: str, mounts: str) -> list[tuple[Path, CgroupNames]]:
    """Return the groups in which to try to make one, the nearest to this process first.

    Args:
        own_groups: the text of ``/proc/self/cgroup``.
        mounts: the text of ``/proc/self/mountinfo``.
    """
    found = []
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        root, mount_point = fields.split()[3:5]
        if kind == "cgroup" and "memory" in options.split(" ")[-1].split(","):
            names = V1
        elif kind == "cgroup2":
            names = V2
        else:
            continue
        own = _own_group(own_groups, names)
        if own is None:
            continue
        # The mount may show a part of the hierarchy only, and our group may lie outside of that part.
        inside = Path(own)
        inside = inside.relative_to(root) if inside.is_relative_to(root) else Path()
        group = Path(mount_point) / inside
        found += [(path, names) for path in (group, *group.parents) if path.is_relative_to(mount_point)]
    return found


def _own_group(own_groups: str, names: CgroupNames) -> str | None:
    for line in own_groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" if names.version == 2 else "memory" in controllers.split(","):
            return path
    return None


def make_cgroup(parent: Path, names: CgroupNames, limit_bytes: int) -> CgroupBudget | None:
    """Make a group with this limit below ``parent`` and see that a process can enter it; ``None`` where that fails.

    The controllers of ``parent`` stay as they are: they belong to the administrator of this machine.
    """
    if names.version == 2:
        try:
            if "memory" not in (parent / "cgroup.subtree_control").read_text().split():
                return None
        except OSError:
            return None
    directory = parent / f"{GROUP_PREFIX}{os.getpid()}"
    try:
        directory.mkdir()
    except OSError:
        return None
    try:
        budget = CgroupBudget(directory, names, limit_bytes)
        entered = subprocess.run(budget.wrap(["true"], expendable=True), stderr=subprocess.DEVNULL, check=False)
        budget.used_bytes()
        budget.kernel_kills()
        if entered.returncode == 0:
            return budget
    except (OSError, ValueError):
        pass  # the same as not permitted: the files are not as expected
    with contextlib.suppress(OSError):
        directory.rmdir()
    return None
