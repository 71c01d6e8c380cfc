"""The virtual machines of daemons as policies see them: from ``query-vms`` and ``query-guest-statistics`` to views."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from host.policy.observation import VmView

Key = tuple[str, int, int]
"""A virtual machine: the daemon's socket, the number of its connection, and the number of the machine there."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a guest said last, by the specification's names in lower case, and when (seconds)."""

    values: Mapping[str, int]
    at: float


@dataclass(slots=True)
class _Machine:
    """What is remembered of one machine. ``backed`` and ``peak`` are bytes that the host holds, now and at most."""

    name: str
    backed: int | None = None
    peak: int = 0
    refaulted: int = 0


@dataclass(slots=True)
class Machines:
    """Names each machine, for as long as it is there, and makes views of it."""

    _machines: dict[Key, _Machine] = field(default_factory=dict)

    def keep(self, keys: "set[Key]") -> None:
        """Forget the machines that are not among ``keys``: their names may be given again."""
        self._machines = {key: machine for key, machine in self._machines.items() if key in keys}

    def name(self, key: Key, shown: str) -> str:
        """Return the name of a machine: the one that the daemon shows, with the number if another one has it."""
        if key not in self._machines:
            taken = {machine.name for machine in self._machines.values()}
            number = key[2]
            name = next(
                name
                for name in (shown, f"{shown}/{number}", f"{key[0]}/{number}", f"{key[0]}/{key[1]}/{number}")
                if name not in taken
            )
            self._machines[key] = _Machine(name)
        return self._machines[key].name

    def view(self, key: Key, facts: Mapping[str, Any], statistics: Statistics | None, now: float) -> VmView:
        """Return the view of a machine by the daemon's ``facts`` about it and what its guest said last."""
        name = self.name(key, str(facts["name"]))
        machine = self._machines[key]
        backed = facts["host-backed"]
        self._count(machine, backed)
        values: Mapping[str, int] = {} if statistics is None else statistics.values
        return VmView(
            name=name,
            memory_bytes=int(facts["guest-memory"]),
            balloon_bytes=min(int(facts["balloon-actual"]), int(facts["guest-memory"])),
            target_bytes=int(facts["balloon-requested"]),
            total_bytes=values.get("memtot"),
            free_bytes=values.get("memfree"),
            available_bytes=values.get("avail"),
            cache_bytes=values.get("caches"),
            statistics_age=None if statistics is None else max(now - statistics.at, 0.0),
            host_backed_bytes=backed,
            refaulted_bytes=machine.refaulted,
            major_faults=values.get("majflt"),
            minor_faults=values.get("minflt"),
            swapped_in_bytes=values.get("swap_in"),
            swapped_out_bytes=values.get("swap_out"),
            age=float(facts["age"]),
        )

    def _count(self, machine: _Machine, backed: int | None) -> None:
        # What the host provides below the most that it ever had, it had and gave back. An estimate: between two looks
        # other pages may have gone.
        if backed is None:
            return
        if machine.backed is not None and backed > machine.backed:
            machine.refaulted += max(min(backed, machine.peak) - machine.backed, 0)
        machine.backed = backed
        machine.peak = max(machine.peak, backed)
