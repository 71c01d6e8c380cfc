"""What a policy is: it looks at an observation now and then, and answers with targets and reclaims.

Example: a policy of your own, used as ``balloon-policy my_module:Half`` or ``[policy] name = "my_module:Half"``::

    class Half:
        name = "half"
        interval = 10.0

        def decide(self, seen: Observation) -> Decision:
            return Decision(tuple(SetBalloon(vm.name, vm.memory_bytes // 2) for vm in seen.vms.values()), "half of all")
"""

from dataclasses import dataclass
from typing import Protocol

from host.policy.observation import Observation


@dataclass(frozen=True, slots=True)
class SetBalloon:
    """Ask the balloon of ``vm`` to hold ``size`` bytes."""

    vm: str
    size: int


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Have ``vm`` give up what it does not use, once: at most ``size`` bytes, None without a bound."""

    vm: str
    size: int | None = None


Action = SetBalloon | Reclaim


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy answers: its actions, and one line that says why, with the inputs that counted."""

    actions: tuple[Action, ...] = ()
    reason: str = ""


class Policy(Protocol):
    """One way of sharing a host's memory. An object may keep what it has seen; a run has an object of its own."""

    name: str
    """What it is called in files and on command lines."""

    interval: float
    """Seconds from one decision to the next."""

    def decide(self, seen: Observation) -> Decision:
        """Return what is to be done now."""
