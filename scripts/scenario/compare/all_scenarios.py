"""All shipped scenarios of virtual time under all policies: how ours stands in each, as a table and as Markdown.

Scenarios on a host of more than :data:`LARGE_HOST` are played smaller: by a power of two such that no machine has more
than :data:`MOST_MEMORY`; of more than :data:`MOST_MACHINES` machines each n-th, on an n-th of the host. Times stay as
they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from protocol.units import GIB
from scripts.laboratory.experiment import Table
from scripts.scenario.compare.spread import spread
from scripts.scenario.compare.verdict import COSTS, MEMORY, OURS, REPORTING, Verdict, verdict
from scripts.scenario.scale import scaled
from scripts.scenario.scenario import Scenario, VmKind
from scripts.scenario.score import Score

LARGE_HOST: Final = 2 * GIB
MOST_MEMORY: Final = GIB // 2
MOST_MACHINES: Final = 100

COLUMNS: Final = ("GiB*min", "stall s", "OOM")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One scenario: the scores of each policy, of the same seeds in the same order."""

    scenario: Scenario
    scale: str
    """How much smaller it was played, "" if it was not."""
    scores: Mapping[str, Sequence[Score]]

    @property
    def verdict(self) -> Verdict:
        """How our policy stands."""
        return verdict(self.scores, self.scenario.duration * len(self.scenario.vms))


def in_virtual_time(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """Return those that virtual time can play: without a real kernel."""
    return [one for one in scenarios if all(vm.kind is not VmKind.LINUX for vm in one.vms)]


def smaller(scenario: Scenario) -> tuple[Scenario, str]:
    """Return the scenario as it is compared, and how much smaller that is, in words."""
    words = []
    factor = 1.0
    while scenario.budget_bytes > LARGE_HOST and max(vm.memory_bytes for vm in scenario.vms) * factor > MOST_MEMORY:
        factor /= 2
    # Machines without pages cost the same at any size.
    step = -(-len(scenario.vms) // MOST_MACHINES)
    if step > 1:
        scenario = replace(
            scenario,
            vms=scenario.vms[::step],
            budget_bytes=scenario.budget_bytes // step,
            swap_bytes=scenario.swap_bytes // step,
        )
        words.append(f"one machine in {step}")
    elif factor < 1:
        scenario = scaled(scenario, factor)
        words.append(f"sizes times 1/{1 / factor:g}")
    return scenario, ", ".join(words)


def _cells(comparison: Comparison, policy: str) -> tuple[str, ...]:
    scores = comparison.scores
    cells = []
    for name in (MEMORY, *COSTS):
        found = spread(scores[policy], scores[REPORTING], name)
        cells.append(f"{found.mean:.3g} ± {found.deviation:.2g}")
    return tuple(cells)


def overview(comparisons: Sequence[Comparison]) -> Table:
    """Return one row for each scenario: reporting alone, our policy, and the verdict."""
    rows = []
    seeds = max((len(comparison.scores[OURS]) for comparison in comparisons), default=0)
    for comparison in comparisons:
        alone, ours = (_cells(comparison, policy)[:2] for policy in (REPORTING, OURS))
        rows.append((comparison.scenario.name, *alone, *ours, str(comparison.verdict)))
    header = ("scenario", "reporting GiB*min", "stall s", f"{OURS} GiB*min", "stall s", OURS)
    seeds = len(comparisons[0].scores[OURS])
    return Table(
        title=f"All shipped scenarios, {seeds} seed{'s' if seeds > 1 else ''} each", header=header, rows=tuple(rows)
    )


def details(comparison: Comparison) -> Table:
    """Return one row for each policy, fewest GiB*minutes first."""
    left_out = comparison.verdict.left_out
    scores = comparison.scores
    names = sorted(scores, key=lambda name: spread(scores[name], scores[REPORTING], MEMORY).mean)
    rows = tuple(
        (name, *_cells(comparison, name), "costs more than reporting" if name in left_out else "") for name in names
    )
    smaller_by = f" ({comparison.scale})" if comparison.scale else ""
    return Table(title=f"{comparison.scenario.name}{smaller_by}", header=("policy", *COLUMNS, ""), rows=rows)


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the overview and all details as Markdown."""
    tables = [overview(comparisons), *(details(comparison) for comparison in comparisons)]
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    lines = [f"### {table.title}", "", _row(table.header)]
    lines.append(_row(("---", *("---:" for _ in table.header[1:]))))
    lines.extend(_row(row) for row in table.rows)
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
