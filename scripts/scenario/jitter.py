"""What a seed means: how much a scenario's starts, sizes and durations vary with it.

With ``jitter`` j each of these is multiplied by a factor of its own, evenly distributed from 1 - j to 1 + j:

* the gap between the start of one machine and that of the next one, so that their order stays;
* the size of each workload. One that is stated to fit stays so: it does not grow beyond :data:`MOST_PART` of the
  machine's memory, the boot included;
* the durations of each workload, all times the same factor.

Seed 0 plays what the file says, and so does a jitter of 0. Factors depend on the seed and the number of the machine
alone, so every policy and every kind of run meets the same ones.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from guest.workloads.trace_file import TRACE
from protocol.units import parse_size
from scripts.scenario.scenario import Scenario, VmSpec, vm_seed

MOST_PART: Final = 0.9
"""Of a machine's memory: what boot and a workload may hold together after growing."""

TIMES: Final = ("seconds", "hold", "rest")
"""Keys of workloads that are durations. ``tick`` and ``lifetime`` are how a workload works, and stay."""


def jittered(scenario: Scenario, seed: int) -> Scenario:
    """Return the scenario as it is played with ``seed``; its own jitter is 0, as it has been applied.

    Traces and the commands of real kernels stay as they are.
    """
    jitter = scenario.jitter
    played = replace(scenario, jitter=0.0)
    if jitter == 0 or seed == 0:
        return played
    chances = [random.Random(f"jitter {vm_seed(seed, number)}") for number in range(len(scenario.vms))]
    starts = _starts(scenario.vms, chances, jitter)
    vms = (
        replace(vm, start=start, workloads=tuple(_workload(vm, text, chance, jitter) for text in vm.workloads))
        for vm, start, chance in zip(scenario.vms, starts, chances, strict=True)
    )
    return replace(played, vms=tuple(vms))


def _factor(chance: random.Random, jitter: float) -> float:
    return chance.uniform(1 - jitter, 1 + jitter)


def _starts(vms: Sequence[VmSpec], chances: Sequence[random.Random], jitter: float) -> list[float]:
    # In order of time, each gap with the factor of the machine that ends it. Machines that start together stay so.
    starts = [0.0] * len(vms)
    before = start = 0.0
    for number in sorted(range(len(vms)), key=lambda number: vms[number].start):
        start += (vms[number].start - before) * _factor(chances[number], jitter)
        starts[number], before = start, vms[number].start
    return starts


def _workload(vm: VmSpec, text: str, chance: random.Random, jitter: float) -> str:
    larger, longer = _factor(chance, jitter), _factor(chance, jitter)
    name, colon, rest = text.partition(":")
    if name == TRACE or not colon:
        return text
    values = dict(item.partition("=")[::2] for item in rest.split(","))
    for key in TIMES:
        if key in values:
            values[key] = f"{float(values[key]) * longer:.6g}"
    if size := parse_size(values.get("size", "0")):
        at_once = int(values.get("tasks", "1"))
        most = max(size, int(vm.memory_bytes * MOST_PART - vm.boot_bytes) // at_once)
        values["size"] = str(max(1, min(int(size * larger), most)))
    return f"{name}:{','.join(f'{key}={value}' for key, value in values.items())}"
