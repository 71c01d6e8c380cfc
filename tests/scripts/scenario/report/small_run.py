"""The results of a small run, in virtual time: one machine that is killed, one that finishes, one that never starts."""

from pathlib import Path
from typing import Final

from host.policy.registry import make_policy
from protocol.units import MIB
from scripts.scenario.results import write_results
from scripts.scenario.run_record import RunRecord
from scripts.scenario.scenario import Scenario, VmSpec
from scripts.scenario.virtual.fleet import Fleet

HOSTILE: Final = "</script><b>&amp;\u2028{{data}}" + "x" * 80
"""The name of the machine that finishes: markup, and wider than a phone."""


def small_run() -> RunRecord:
    """Play it and return its record."""
    specs = (
        VmSpec(name=HOSTILE, memory_bytes=64 * MIB, reporter="rotation", workloads=("memhog:size=24M,hold=2",)),
        VmSpec(name="killed", memory_bytes=64 * MIB, start=4.0, workloads=("memhog:size=60M,hold=4",)),
        VmSpec(name="late", memory_bytes=64 * MIB, start=99.0),
    )
    scenario = Scenario(name="small", title=f"A small run {HOSTILE}", budget_bytes=56 * MIB, duration=12.0, vms=specs)
    return Fleet(scenario, make_policy("reporting", {}), seed=1, maps=True).run()


def write_small_run(directory: Path) -> Path:
    """Write its results into the directory, and return that."""
    directory.mkdir(parents=True, exist_ok=True)
    write_results(small_run(), directory)
    return directory
