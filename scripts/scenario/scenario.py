"""A scenario: a host with a budget, virtual machines with what they do and when, and the policy that shares memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class VmKind(Enum):
    """What plays a virtual machine."""

    EMULATED = "emulated"
    """``balloon-guest``, or its memory manager in virtual time."""
    LINUX = "linux"
    """``balloon-linux``: a real kernel. A virtual run has none."""
    COARSE = "coarse"
    """Numbers alone, without pages: for thousands of machines in virtual time. A real run has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """One virtual machine. Sizes are bytes, times are seconds.

    ``reporter`` is the name of a page reporter, None to report nothing; ``reporting`` are its constants (``order``,
    ``delay``, ``capacity``). ``workloads`` are those of ``balloon-guest``, one after the other from ``start`` on, and
    ``command`` is what a real kernel runs instead. ``expendable`` marks the machine that is killed first when the
    memory does not suffice.
    """

    name: str
    kind: VmKind = VmKind.EMULATED
    memory_bytes: int
    start: float = 0.0
    reporter: str | None = "boundary"
    reporting: Mapping[str, float | int] = field(default_factory=dict)
    workloads: tuple[str, ...] = ()
    command: str | None = None
    cpus: int = 1
    profile: str = "7.2"
    boot_bytes: int = 0
    """What its kernel and services hold from the start to the end, beside the workloads."""
    overhead_bytes: int = 0
    """What the process that plays it costs the host beside the guest's memory. A real run measures it instead."""
    expendable: bool = False
    has_network: bool = False
    """Whether it runs in a network namespace of its own (a real run)."""
    is_bridged: bool = False
    """Whether that namespace has an interface on a bridge with those of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """The policy by name or as ``module:Class``, and its parameters."""

    name: str = "reporting"
    parameters: Mapping[str, float | int | str | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is played. ``budget_bytes`` is what all virtual machines may have of the host together.

    ``duration`` is seconds: the run ends then, whatever the machines are doing.
    """

    name: str
    title: str
    budget_bytes: int
    swap_bytes: int = 0
    """How much of the machines' memory the host can swap out. Without swap, what exceeds the budget is killed."""
    duration: float
    vms: tuple[VmSpec, ...]
    policy: PolicySpec = PolicySpec()
    seed: int = 0
    jitter: float = 0.0
    """Share by which starts, sizes and durations vary with the seed (``jitter.jittered``)."""
    sample_interval: float = 0.25
    """Seconds between two samples of memory and ledger."""


def vm_seed(scenario_seed: int, number: int) -> int:
    """Return the seed of virtual machine ``number`` (from 0); its workload i has that seed plus i."""
    return scenario_seed * 1_000_000 + number * 100
