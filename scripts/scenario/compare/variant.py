"""What is varied between the runs of a comparison: the policy, or how the machines report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from host.policy.registry import make_policy
from protocol.errors import UsageError
from scripts.scenario.scenario import PolicySpec, Scenario, VmKind, VmSpec

POLICY: Final = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A scenario as one of several: ``name`` is its column, such as ``policy=mom``."""

    name: str
    scenario: Scenario


def _vary_vms(scenario: Scenario, change: Callable[[VmSpec], VmSpec]) -> Scenario:
    return replace(scenario, vms=tuple(vm if vm.kind is VmKind.LINUX else change(vm) for vm in scenario.vms))


def _with_policy(scenario: Scenario, value: str) -> Scenario:
    make_policy(value, {})  # raises for an unknown one now, not in the middle
    parameters: Mapping[str, float | int | str | bool] = (
        scenario.policy.parameters if value == scenario.policy.name else {}
    )
    return replace(scenario, policy=PolicySpec(name=value, parameters=parameters))


def _with_reporter(scenario: Scenario, value: str) -> Scenario:
    reporters = ("boundary", "rotation", "scan", "none")
    if value not in reporters:
        raise UsageError(f"reporter {value!r} is not one of {', '.join(reporters)}")
    reporter = None if value == "none" else value
    return _vary_vms(
        scenario, lambda vm: replace(vm, reporter=reporter, reporting={} if reporter is None else vm.reporting)
    )


def _with_delay(scenario: Scenario, value: str) -> Scenario:
    return _with_constant(scenario, "delay", float(value))


def _with_order(scenario: Scenario, value: str) -> Scenario:
    return _with_constant(scenario, "order", _whole("order", value))


def _with_capacity(scenario: Scenario, value: str) -> Scenario:
    return _with_constant(scenario, "capacity", _whole("capacity", value))


def _whole(name: str, value: str) -> int:
    if not float(value).is_integer():
        raise UsageError(f"--vary {name}: {value} is not a whole number")
    return int(float(value))


def _with_constant(scenario: Scenario, name: str, value: float) -> Scenario:
    if value < 0:
        raise UsageError(f"{name} {value:g} is below 0")
    return _vary_vms(
        scenario, lambda vm: vm if vm.reporter is None else replace(vm, reporting={**vm.reporting, name: value})
    )


KINDS: Final[Mapping[str, Callable[[Scenario, str], Scenario]]] = {
    POLICY: _with_policy,
    "reporter": _with_reporter,
    "delay": _with_delay,
    "order": _with_order,
    "capacity": _with_capacity,
}
"""What can be varied, and how a scenario gets a value of it. ``delay`` is in seconds."""


def variants(scenario: Scenario, varied: Sequence[str]) -> list[Variant]:
    """Return the scenario once for each combination of values. ``varied`` has words such as ``policy=mom,esx``.

    Raises:
        UsageError: an unknown kind, the same kind twice, or a value that it cannot have.
    """
    found = [Variant(name="", scenario=scenario)]
    kinds: set[str] = set()
    for word in varied:
        kind, equals, values = word.partition("=")
        if kind not in KINDS or not equals or not values:
            raise UsageError(f"--vary takes KIND=VALUE,... with a kind of {', '.join(KINDS)}, not {word!r}")
        if kind in kinds:
            raise UsageError(f"--vary {kind} is given twice: list its values, separated by commas")
        kinds.add(kind)
        found = [_with(variant, kind, value) for variant in found for value in dict.fromkeys(values.split(","))]
    return found


def _with(variant: Variant, kind: str, value: str) -> Variant:
    try:
        scenario = KINDS[kind](variant.scenario, value)
    except ValueError as error:
        raise UsageError(f"--vary {kind}: {value!r} is not a number") from error
    return Variant(name=" ".join(filter(None, (variant.name, f"{kind}={value}"))), scenario=scenario)
