"""``wsl``: the automatic memory reclaim of the Windows Subsystem for Linux (microsoft/WSL, ``src/linux/init/util.cpp``,
as of pull request 41096).

A machine that has been idle for ``idle_after`` gives up page cache. ``gradual``: a step every ``interval``, a 32nd of
its memory, from ``step_min`` to ``step_max``, until ``floor`` is left. ``dropcache``: all above ``floor``, once in a
period of idleness.

WSL works inside of the guest: it reads the processor's time, and writes to ``memory.reclaim`` or ``drop_caches``. From
outside, idleness is seen in the statistics (:mod:`host.policy.activity`). A step is a pulse of the balloon: it grows by
what is free and by the step, so that the guest's kernel has to give up cache, and is empty again at the next decision.
"""

from dataclasses import dataclass

from host.policy.activity import IdleTime
from host.policy.observation import Observation, VmView
from host.policy.parameters import interval, parameter
from host.policy.policy import Action, Decision, SetBalloon
from host.policy.vm_memory import bounded, free_bytes
from protocol.units import GIB, MIB

STEP_PART = 32
"""A step is one part in so many of the machine's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WslParameters:
    """The setting ``autoMemoryReclaim``, and the constants of the code."""

    interval: float = interval(10.0)
    auto_memory_reclaim: str = parameter("gradual", "how", choices=("disabled", "gradual", "dropcache"))
    idle_after: float = parameter(120.0, "seconds of idleness before anything is taken", least=0)
    floor: int = parameter(128 * MIB, "page cache that is left", least=0, is_size=True)
    step_min: int = parameter(256 * MIB, "smallest step", least=4096, is_size=True)
    step_max: int = parameter(GIB, "largest step", least=4096, is_size=True)


class Wsl:
    """Takes page cache from machines that do nothing."""

    name = "wsl"

    def __init__(self, parameters: WslParameters = WslParameters()) -> None:
        self.parameters = parameters
        self.interval = parameters.interval
        self._idle = IdleTime()
        self._dropped: set[str] = set()

    def decide(self, seen: Observation) -> Decision:
        """Return a pulse for idle machines, and the end of the last one."""
        self._idle.keep(seen.vms.keys())
        self._dropped &= seen.vms.keys()
        actions: list[Action] = []
        trace = []
        for vm in seen.vms.values():
            idle, _ = self._idle.update(vm, seen.now)
            if idle < self.parameters.idle_after:
                self._dropped.discard(vm.name)
            if vm.target_bytes > 0:
                actions.append(SetBalloon(vm.name, 0))
                continue
            step = self._step(vm, idle)
            if step > 0:
                actions.append(SetBalloon(vm.name, bounded(vm, (free_bytes(vm) or 0) + step)))
                trace.append(f"{vm.name} idle {idle:.0f} s, cache {(vm.cache_bytes or 0) >> 20}M, take {step >> 20}M")
        return Decision(tuple(actions), "; ".join(trace) or "no idle machine has cache above the floor")

    def _step(self, vm: VmView, idle: float) -> int:
        # The bytes of page cache to take now.
        constants = self.parameters
        above = (vm.cache_bytes or 0) - constants.floor
        mode = constants.auto_memory_reclaim
        if mode == "disabled" or idle < constants.idle_after or above <= 0 or free_bytes(vm) is None:
            return 0
        if mode == "gradual":
            step = max(constants.step_min, min(vm.memory_bytes // STEP_PART, constants.step_max))
            return min(step, above)
        if vm.name in self._dropped:
            return 0
        self._dropped.add(vm.name)
        return above
