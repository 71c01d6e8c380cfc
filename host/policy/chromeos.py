"""``chromeos``: *BalanceAvailable* of ChromeOS (``vm_tools/concierge/balloon_policy.cc``).

What a guest has available above a critical level, and what the host has above its own, are brought together: the
balloon changes by half of their difference. The fuller the balloon, the more of the guest's memory is left alone
(``guest_available_bias``). The critical level of the guest is learned: where a guest stays below it although its
balloon could have grown, that is a level at which it can live. Changes of about 1 % or less of either are left out.
"""

from dataclasses import dataclass
from typing import Final

from host.policy.observation import Observation, VmView
from host.policy.parameters import interval, parameter
from host.policy.policy import Decision, SetBalloon
from host.policy.vm_memory import bounded, free_bytes
from protocol.units import MIB

MAX_CRITICAL_DELTA: Final = 10 * MIB
"""How far a change may take the guest or the host below its critical level."""

FULL_PERCENT: Final = 95
"""A balloon of more percent of the largest that was seen is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChromeosParameters:
    """The margins. ``critical_margin`` is a share of the host's memory: 5.2 % by default, as on ChromeOS."""

    interval: float = interval(1.0)
    critical_margin: float = parameter(0.052, "share of the host's memory that is critical", least=0, most=1)
    critical_guest_available: int = parameter(400 * MIB, "critical level of a guest at first", least=0, is_size=True)
    guest_available_bias: int = parameter(0, "left alone in a guest whose balloon is full", least=0, is_size=True)


@dataclass(slots=True)
class _Guest:
    """What has been learned about one guest: levels in bytes, and how full its balloon was last."""

    critical: int
    largest_balloon: int
    available: int
    full_percent: int = 0


class Chromeos:
    """Balances what the guests have available with what the host has."""

    name = "chromeos"

    def __init__(self, parameters: ChromeosParameters = ChromeosParameters()) -> None:
        self.parameters = parameters
        self.interval = parameters.interval
        self._guests: dict[str, _Guest] = {}

    def decide(self, seen: Observation) -> Decision:
        """Return a new target for each guest whose balloon is to change."""
        self._guests = {name: guest for name, guest in self._guests.items() if name in seen.vms}
        host_available = seen.host.free_bytes
        above = host_available - int(self.parameters.critical_margin * seen.host.budget_bytes)
        actions, trace = [], []
        for vm in seen.vms.values():
            delta = self._delta(vm, above)
            if delta:
                actions.append(SetBalloon(vm.name, bounded(vm, vm.balloon_bytes + delta)))
                trace.append(f"{vm.name} {vm.balloon_bytes >> 20}M {delta / MIB:+.0f}M")
        why = f"host available {host_available >> 20}M, {above / MIB:+.0f}M above critical: "
        return Decision(tuple(actions), why + (", ".join(trace) or "balanced"))

    def _delta(self, vm: VmView, host_above: int) -> int:
        # The change of the balloon in bytes, 0 for none.
        free = free_bytes(vm)
        if free is None:
            return 0
        available = free + (vm.cache_bytes or 0)
        guest = self._guests.get(vm.name)
        if guest is None:
            critical = self.parameters.critical_guest_available
            total = vm.memory_bytes if vm.total_bytes is None else vm.total_bytes
            guest = self._guests[vm.name] = _Guest(critical, total * 3 // 4, critical)
        guest.largest_balloon = max(guest.largest_balloon, vm.balloon_bytes, 1)
        percent = vm.balloon_bytes * 100 // guest.largest_balloon
        self._learn(guest, available, percent)
        guest_above = available - guest.critical - self.parameters.guest_available_bias * percent // 100
        # Half of it: what the guest gives up, the host gains.
        wanted = (guest_above - host_above) // 2
        lowest, highest = -(host_above + MAX_CRITICAL_DELTA), available - guest.critical + MAX_CRITICAL_DELTA
        # Where both bounds contradict each other the host's counts.
        delta = max(min(wanted, highest), lowest)
        near = guest_above < MIB or host_above < MIB
        if not near and abs(wanted) * 100 // guest_above <= 1 and abs(wanted) * 100 // host_above <= 1:
            return 0
        return max(delta, -vm.balloon_bytes)

    def _learn(self, guest: _Guest, available: int, percent: int) -> None:
        below = available < guest.critical and percent < FULL_PERCENT
        if below and guest.available < guest.critical and guest.full_percent < FULL_PERCENT:
            guest.critical = guest.available
        guest.available, guest.full_percent = available, percent
