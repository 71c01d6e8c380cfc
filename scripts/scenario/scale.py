"""Scenarios at another scale: the same times, with all sizes and rates multiplied by a factor."""

import math
from dataclasses import replace
from typing import Final

from guest.workloads.trace_file import TRACE
from protocol.errors import UsageError
from protocol.units import MIB, parse_size
from scripts.scenario.scenario import Scenario, VmKind, VmSpec
from scripts.scenario.scenario_file import LEAST_MEMORY, MOST_EMULATED

BLOCK: Final = 4 * MIB
"""Memory of a machine is a multiple of this, the largest block of its allocator."""

MOST_SCALE: Final = 1e6

_SIZES: Final = ("size", "rate")
"""Keys of workloads whose values are bytes, and bytes a second."""


def scaled(scenario: Scenario, factor: float) -> Scenario:
    """Return the scenario with all its sizes and rates times ``factor``. Traces and commands stay as they are.

    Raises:
        UsageError: not a positive factor, or a machine becomes smaller than 16 MiB.
    """
    if not 0 < factor <= MOST_SCALE:
        raise UsageError(f"a scale of {factor:g} is not a number above 0, up to {MOST_SCALE:g}")
    return replace(
        scenario,
        budget_bytes=max(1, int(scenario.budget_bytes * factor)),
        swap_bytes=int(scenario.swap_bytes * factor),
        vms=tuple(_scaled_vm(vm, factor) for vm in scenario.vms),
    )


def fitting(scenario: Scenario, available_bytes: int) -> Scenario:
    """Return the scenario itself if its budget is at most ``available_bytes``, otherwise scaled down by a power of two
    so that it is.

    Raises:
        UsageError: a machine becomes smaller than 16 MiB.
    """
    if scenario.budget_bytes <= available_bytes:
        return scenario
    if available_bytes <= 0:
        raise UsageError("there is no memory for this scenario")
    return scaled(scenario, 0.5 ** math.ceil(math.log2(scenario.budget_bytes / available_bytes)))


def _scaled_vm(vm: VmSpec, factor: float) -> VmSpec:
    memory = round(vm.memory_bytes * factor / BLOCK) * BLOCK
    if memory < LEAST_MEMORY:
        raise UsageError(f"at a scale of {factor:g} the machine {vm.name} has less than {LEAST_MEMORY >> 20} MiB")
    if vm.kind is VmKind.EMULATED and memory > MOST_EMULATED:
        raise UsageError(f"at a scale of {factor:g} the machine {vm.name} has more than {MOST_EMULATED >> 40} TiB")
    return replace(
        vm,
        memory_bytes=memory,
        boot_bytes=int(vm.boot_bytes * factor),
        overhead_bytes=int(vm.overhead_bytes * factor),
        workloads=tuple(_scaled_workload(text, factor) for text in vm.workloads),
    )


def _scaled_workload(text: str, factor: float) -> str:
    name, colon, rest = text.partition(":")
    if name == TRACE or not colon:
        return text
    items = []
    for item in rest.split(","):
        key, _, value = item.partition("=")
        if key in _SIZES and (size := parse_size(value)):
            item = f"{key}={max(1, int(size * factor))}"
        items.append(item)
    return f"{name}:{','.join(items)}"
