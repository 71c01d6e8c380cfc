"""All shipped scenarios of virtual time under all policies: how ours stands in each, as a table and as Markdown.

Scenarios on a host of more than :data:`LARGE_HOST` are played smaller: by a power of two such that no machine has more
than :data:`MOST_MEMORY`; of more than :data:`MOST_MACHINES` machines, or :data:`MOST_HOURS` machine hours with pages,
each n-th machine on an n-th of the host. Times stay as they are.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from host.policy.registry import POLICIES
from protocol.units import GIB, MIB
from scripts.laboratory.experiment import Table
from scripts.scenario.compare.jobs import Job
from scripts.scenario.compare.spread import spread
from scripts.scenario.compare.variant import variants
from scripts.scenario.compare.verdict import COSTS, MEMORY, OURS, REPORTING, Verdict, verdict
from scripts.scenario.scale import scaled
from scripts.scenario.scenario import Scenario, VmKind
from scripts.scenario.scenario_file import load_scenario, shipped_scenarios
from scripts.scenario.score import Score

LARGE_HOST: Final = 2 * GIB
MOST_MEMORY: Final = 640 * MIB
"""The guests of 5 GB at a sixteenth run out of their own memory; at an eighth as many fit as at their full size."""
MOST_MACHINES: Final = 100
MOST_HOURS: Final = 40.0

COLUMNS: Final = ("GiB*min", "stall s", "OOM")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One scenario: the scores of each policy, of the same seeds in the same order."""

    scenario: Scenario
    scale: str
    """How much smaller it was played, "" if it was not."""
    scores: Mapping[str, Sequence[Score]]

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.scores[OURS])

    @property
    def verdict(self) -> Verdict:
        """How our policy stands."""
        return verdict(self.scores)


def in_virtual_time(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """Return those that virtual time can play: without a real kernel."""
    return [one for one in scenarios if all(vm.kind is not VmKind.LINUX for vm in one.vms)]


def smaller(scenario: Scenario) -> tuple[Scenario, str]:
    """Return the scenario as it is compared, and how much smaller that is, in words."""
    words = []
    factor = 1.0
    machines = len(scenario.vms)
    while scenario.budget_bytes > LARGE_HOST and max(vm.memory_bytes for vm in scenario.vms) * factor > MOST_MEMORY:
        factor /= 2
    # Machines without pages cost the same at any size.
    has_pages = any(vm.kind is not VmKind.COARSE for vm in scenario.vms)
    hours = machine_hours(scenario) if has_pages else 0.0
    step = max(-(-machines // MOST_MACHINES), math.ceil(hours / MOST_HOURS))
    if step > 1:
        scenario = replace(
            scenario,
            vms=scenario.vms[::step],
            budget_bytes=scenario.budget_bytes // step,
            swap_bytes=scenario.swap_bytes // step,
        )
        words.append(f"{len(scenario.vms)} of {machines} machines")
    if factor < 1 and has_pages:
        scenario = scaled(scenario, factor)
        words.append(f"sizes times 1/{1 / factor:g}")
    return scenario, ", ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A shipped scenario as it is compared: once for each policy."""

    scenarios: Sequence[Scenario]
    scale: str

    def comparison(self, scores: Mapping[Job, Score], first: int, seeds: int) -> Comparison | None:
        """Return it over those of the ``seeds`` seeds that all policies have played, None if there are none of them.

        ``first`` is the variant of the first of ``scenarios`` in ``scores``.
        """
        variants = range(first, first + len(self.scenarios))
        played = [seed for seed in range(seeds) if all(Job(variant, seed) in scores for variant in variants)]
        if not played:
            return None
        found = {
            scenario.policy.name: [scores[Job(variant, seed)] for seed in played]
            for variant, scenario in zip(variants, self.scenarios, strict=True)
        }
        return Comparison(scenario=self.scenarios[0], scale=self.scale, scores=found)


def compared() -> list[Compared]:
    """Return all shipped scenarios of virtual time, each under all shipped policies."""
    found = []
    for shipped in in_virtual_time(map(load_scenario, shipped_scenarios().values())):
        one, scale = smaller(shipped)
        chosen = variants(one, [f"policy={','.join(POLICIES)}"])
        found.append(Compared(scenarios=[variant.scenario for variant in chosen], scale=scale))
    return found


def machine_hours(scenario: Scenario) -> float:
    """Return how many hours its machines run, together: what playing it costs, roughly."""
    return len(scenario.vms) * scenario.duration / 3600


def _cells(comparison: Comparison, policy: str) -> tuple[str, ...]:
    scores = comparison.scores
    cells = []
    for name in (MEMORY, *COSTS):
        found = spread(scores[policy], scores[REPORTING], name)
        cells.append(f"{found.mean:.3g} ± {found.deviation:.2g}")
    return tuple(cells)


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def overview(comparisons: Sequence[Comparison], seeds: int) -> Table:
    """Return one row for each scenario: reporting alone, our policy, and the verdict. A scenario that was played with
    fewer than ``seeds`` seeds says so."""
    rows = []
    for comparison in comparisons:
        alone, ours = (_cells(comparison, policy)[:2] for policy in (REPORTING, OURS))
        name = comparison.scenario.name
        if comparison.seeds < seeds:
            name += f" ({_seeds(comparison.seeds)})"
        rows.append((name, *alone, *ours, str(comparison.verdict)))
    header = ("scenario", "reporting GiB*min", "stall s", f"{OURS} GiB*min", "stall s", OURS)
    most = "up to " if any(comparison.seeds < seeds for comparison in comparisons) else ""
    title = f"Shipped scenarios under all policies, {most}{_seeds(seeds)} each"
    return Table(title=title, header=header, rows=tuple(rows))


def details(comparison: Comparison) -> Table:
    """Return one row for each policy, fewest GiB*minutes first."""
    left_out = comparison.verdict.left_out
    scores = comparison.scores
    names = sorted(scores, key=lambda name: spread(scores[name], scores[REPORTING], MEMORY).mean)
    rows = tuple(
        (name, *_cells(comparison, name), "costs more than reporting" if name in left_out else "") for name in names
    )
    how = ", ".join(filter(None, (_seeds(comparison.seeds), comparison.scale)))
    return Table(title=f"{comparison.scenario.name} ({how})", header=("policy", *COLUMNS, ""), rows=rows)


def markdown(comparisons: Sequence[Comparison], seeds: int) -> str:
    """Return the overview and all details as Markdown."""
    tables = [overview(comparisons, seeds), *(details(comparison) for comparison in comparisons)]
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    lines = [f"### {table.title}", "", _row(table.header)]
    lines.append(_row(("---", *("---:" for _ in table.header[1:]))))
    lines.extend(_row(row) for row in table.rows)
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
