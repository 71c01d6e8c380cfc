"""``reclaim-on-pressure``: free page reporting, and the daemon's ``reclaim`` when the host runs short of memory.

The host is short when tasks wait for memory (``pressure``) or when little of the budget is free (``low_free``). Then
the machines whose free memory the host still backs give it up, the largest first, at most ``at_once`` of them in a
decision and each at most once in ``cooldown`` seconds. Balloons stay empty.
"""

from dataclasses import dataclass

from host.policy.observation import Observation, VmView
from host.policy.parameters import interval, parameter
from host.policy.policy import Decision, Reclaim
from host.policy.vm_memory import free_bytes, unreturned_bytes
from protocol.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimOnPressureParameters:
    """When the host is short, and what is worth a reclaim."""

    interval: float = interval(2.0)
    pressure: float = parameter(10.0, "percent of time in which tasks wait (some avg10)", least=0, most=100)
    low_free: float = parameter(0.10, "share of the budget below which the host is short", least=0, most=1)
    least_gain: int = parameter(32 * MIB, "smallest gain that a reclaim is worth", least=0, is_size=True)
    cooldown: float = parameter(30.0, "seconds between two reclaims from one machine", least=0)
    at_once: int = parameter(2, "machines in one decision", least=1, most=1000)


class ReclaimOnPressure:
    """Reclaims once from a few machines while the host is short of memory."""

    name = "reclaim-on-pressure"

    def __init__(self, parameters: ReclaimOnPressureParameters = ReclaimOnPressureParameters()) -> None:
        self.parameters = parameters
        self.interval = parameters.interval
        self._reclaimed: dict[str, float] = {}

    def decide(self, seen: Observation) -> Decision:
        """Return the reclaims that are due."""
        self._reclaimed = {name: at for name, at in self._reclaimed.items() if name in seen.vms}
        pressure = seen.host.pressure
        free = seen.host.free_bytes / max(seen.host.budget_bytes, 1)
        said = "unknown" if pressure is None else f"{pressure:.1f}%"
        why = f"pressure {said}, free {free:.1%}"
        if free >= self.parameters.low_free and (pressure is None or pressure < self.parameters.pressure):
            return Decision((), f"{why}: the host is not short")
        gains = [(gain, vm.name) for vm in seen.vms.values() if (gain := self._gain(vm, seen.now)) is not None]
        gains.sort(key=lambda item: (-item[0], item[1]))
        chosen = gains[: self.parameters.at_once]
        for _, name in chosen:
            self._reclaimed[name] = seen.now
        named = ", ".join(f"{name} (about {gain >> 20}M)" for gain, name in chosen)
        return Decision(tuple(Reclaim(name) for _, name in chosen), f"{why}: {named or 'no machine to reclaim from'}")

    def _gain(self, vm: VmView, now: float) -> int | None:
        # What a reclaim may bring, None if it is not due or not worth it.
        if now - self._reclaimed.get(vm.name, float("-inf")) < self.parameters.cooldown:
            return None
        gain = unreturned_bytes(vm)
        if gain is None:
            gain = free_bytes(vm)
        return gain if gain is not None and gain >= max(self.parameters.least_gain, 1) else None
