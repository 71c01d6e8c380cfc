"""The memory of this host, or of a memory cgroup (version 1 or 2): the budget, what is used of it, and the pressure.

Sources: the kernel's admin-guide/cgroup-v2, admin-guide/cgroup-v1/memory, accounting/psi; proc(5).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError

MEMINFO: Final = Path("/proc/meminfo")
PRESSURE: Final = Path("/proc/pressure/memory")
OWN_CGROUPS: Final = Path("/proc/self/cgroup")
MOUNT: Final = Path("/sys/fs/cgroup")

_LIMITS: Final = ("memory.max", "memory.limit_in_bytes")
_USAGES: Final = ("memory.current", "memory.usage_in_bytes")


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Where the budget is: in ``cgroup``, or in the whole host if that is None. ``budget`` is bytes; ``is_stated`` says
    that it was stated, and is of the virtual machines alone."""

    budget: int
    cgroup: Path | None = None
    is_stated: bool = False

    def used(self) -> int | None:
        """Return the bytes that are in use and that the kernel could not free at once, None if what counts is what the
        virtual machines have.

        Raises:
            BalloonError: the kernel does not say.
        """
        if self.cgroup is None:
            if self.is_stated:
                return None
            memory = _meminfo()
            return memory["MemTotal"] - memory["MemAvailable"]
        used = _first_number(self.cgroup, _USAGES)
        if used is None:
            raise BalloonError(f"{self.cgroup} does not say how much memory it uses")
        return max(used - _inactive_file(self.cgroup), 0)

    def pressure(self) -> float | None:
        """Return the percent of the last ten seconds in which some task waited for memory, None if that is not
        known."""
        path = PRESSURE if self.cgroup is None else self.cgroup / "memory.pressure"
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, ValueError):
            return None
        found = re.search(r"^some avg10=([0-9.]+)", text, re.MULTILINE)
        return float(found[1]) if found else None


def find_host_memory(budget: int | None, cgroup: Path | None) -> HostMemory:
    """Return where the budget is: ``budget`` bytes and the cgroup ``cgroup`` if they are stated; else the limit of the
    cgroup that this process is in, if it has one; else the memory of the host.

    Raises:
        BalloonError: ``cgroup`` is no memory cgroup or has no limit and no budget is stated.
    """
    total = _meminfo()["MemTotal"]
    if cgroup is not None:
        if _first_number(cgroup, _USAGES) is None:
            raise BalloonError(f"{cgroup} is not the directory of a memory cgroup")
        limit = _first_number(cgroup, _LIMITS)
        if budget is None and (limit is None or limit > total):
            raise BalloonError(f"{cgroup} has no limit: state one with --budget")
        return HostMemory(limit if budget is None and limit is not None else budget or total, cgroup)
    if budget is not None:
        return HostMemory(budget, is_stated=True)
    limited = [(limit, path) for path in _own_cgroups() if (limit := _first_number(path, _LIMITS)) is not None]
    limit, path = min(limited, default=(total, None))
    return HostMemory(limit, path) if limit < total else HostMemory(total)


def _meminfo() -> dict[str, int]:
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        memory = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    except (OSError, ValueError, IndexError) as error:
        raise BalloonError(f"{MEMINFO} cannot be read: {error}") from error
    if not {"MemTotal", "MemAvailable"} <= memory.keys():
        raise BalloonError(f"{MEMINFO} has no MemTotal and MemAvailable")
    return memory


def _own_cgroups() -> Iterator[Path]:
    # The cgroups of this process that may have a limit, with those above them.
    try:
        lines = OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top = MOUNT / "memory" if controllers else MOUNT
        path = top / name.lstrip("/")
        while path != top and top in path.parents:
            yield path
            path = path.parent
        yield top


def _first_number(directory: Path, names: tuple[str, ...]) -> int | None:
    for name in names:
        try:
            text = (directory / name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdecimal():
            return int(text)
    return None


def _inactive_file(cgroup: Path) -> int:
    # Page cache that the kernel drops before anything else.
    try:
        text = (cgroup / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):
        return 0
    found = re.search(r"^total_inactive_file (\d+)$", text, re.MULTILINE) or re.search(
        r"^inactive_file (\d+)$", text, re.MULTILINE
    )
    return int(found[1]) if found else 0
