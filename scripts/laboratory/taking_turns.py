"""Two guests on a host with memory for one: what each costs over time, with reporting and without.

Like the timeline this takes real processes and real time: the two shipped scenarios of this name, played by
``balloon-lab run``, each for 20 seconds.
"""

from collections.abc import Sequence
from typing import Any, Final

from protocol.units import MIB
from scripts.laboratory.experiment import Experiment, Outcome, Progress, Row, Table
from scripts.laboratory.style import LOOKS, caption
from scripts.scenario.run_record import RunRecord, VmState
from scripts.scenario.scale import scaled
from scripts.scenario.scenario_file import find_scenario, load_scenario
from scripts.scenario.score import score_of

NAME: Final = "taking-turns"
ROUNDS: Final = {"with reporting": "taking-turns", "without reporting": "taking-turns-without-reporting"}
"""The rounds, and the scenarios that they are."""

QUICK_SCALE: Final = 0.25

_COLOURS: Final = {"a": LOOKS[0].colour, "b": LOOKS[1].colour}
_HATCHES: Final = {
    ("a", "used_mib"): "",
    ("a", "held_mib"): "///",
    ("b", "used_mib"): "..",
    ("b", "held_mib"): "\\\\\\",
}
_WORDS: Final = {"used_mib": "uses", "held_mib": "has freed, the host still holds it"}


def rows_of(name: str, record: RunRecord) -> list[Row]:
    """Return one row for each sample of each machine of the round ``name``: what it uses, and what it has free and the
    host still holds. Both are of the moment of the guest's last word, scaled to what the host holds now."""
    rows: list[Row] = []
    for sample in record.samples:
        for vm, state in sample.vms.items():
            held = 0 if state.ledger is None else min(state.ledger.not_returned_bytes, state.resident_bytes)
            row: Row = {"round": name, "seconds": sample.t, "vm": vm, "state": state.state.value}
            row |= {"used_mib": (state.resident_bytes - held) / MIB, "held_mib": held / MIB}
            rows.append({**row, "budget_mib": record.scenario.budget_bytes / MIB})
    return rows


def _cells(name: str, record: RunRecord) -> tuple[str, ...]:
    peaks = (f"{outcome.peak_bytes / MIB:.0f}" for outcome in record.outcomes.values())
    states = (outcome.state.value for outcome in record.outcomes.values())
    return (name, *states, *peaks, f"{score_of(record).host_gib_minutes:.3f}")


def run(quick: bool, progress: Progress) -> Outcome:
    """Play both rounds."""
    from scripts.scenario.real.play import play  # late: it needs what --help does without

    rows: list[Row] = []
    cells = []
    for name, scenario_name in ROUNDS.items():
        progress(name)
        scenario = load_scenario(find_scenario(scenario_name))
        record = play(scaled(scenario, QUICK_SCALE) if quick else scenario, policy="reporting", seed=0)
        if record.interrupted:
            raise KeyboardInterrupt
        rows += rows_of(name, record)
        cells.append(_cells(name, record))
    header = ("", "a", "b", "a's peak", "b's peak", "GiB*min")
    return Outcome(
        tables=(Table(title="Two guests by turns (peaks in MiB)", header=header, rows=tuple(cells)),),
        notes=("The limit also counts the two processes themselves, of some 25 MiB each.",),
        rows=rows,
    )


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Draw both rounds beside each other: the guests' memory in layers, below the host's limit."""
    names = list(dict.fromkeys(row["round"] for row in rows))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    budget = max(row["budget_mib"] for row in rows)
    for axes, name in zip(panels, names, strict=True):
        of_round = [row for row in rows if row["round"] == name]
        _draw_layers(axes, of_round)
        axes.axhline(budget, color="black", linestyle="--", linewidth=1.2)
        axes.text(0.3, budget * 1.012, "the host has this much for both", fontsize=8, va="bottom")
        _mark_the_end(axes, of_round, budget)
        axes.set_title(name[:1].upper() + name[1:], fontsize=11)
        axes.set_xlabel("time (seconds)")
        axes.set_xlim(0, max(row["seconds"] for row in of_round))
    panels[0].set_ylim(0, budget * 1.12)
    panels[0].set_ylabel("what the host holds for its guests (MiB)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=9)
    caption(figure, "Measured: one run with real processes. Guest a fills its memory and frees it, then guest b does.")


def _draw_layers(axes: Any, rows: Sequence[Row]) -> None:
    bottom = [0.0] * len({row["seconds"] for row in rows})
    for vm, colour in _COLOURS.items():
        samples = [row for row in rows if row["vm"] == vm]
        seconds = [row["seconds"] for row in samples]
        for column, words in _WORDS.items():
            top = [below + row[column] for below, row in zip(bottom, samples, strict=True)]
            axes.fill_between(
                seconds,
                bottom,
                top,
                facecolor=(colour, 0.85 if column == "used_mib" else 0.25),
                hatch=_HATCHES[vm, column],
                edgecolor="white" if column == "used_mib" else colour,
                linewidth=0,
                label=f"guest {vm} {words}",
            )
            bottom = top


def _mark_the_end(axes: Any, rows: Sequence[Row], budget: float) -> None:
    # How the second guest ended, where it did. A machine that has finished keeps its state.
    for row in rows:
        if row["vm"] == "b" and row["state"] in (VmState.FINISHED.value, VmState.OOM_KILLED.value):
            is_killed = row["state"] == VmState.OOM_KILLED.value
            words = "guest b is killed:\nout of memory" if is_killed else "guest b has\nall it wanted"
            axes.annotate(
                words,
                (row["seconds"], budget * 0.91 if is_killed else budget * 0.6),
                xytext=(6, 0),
                textcoords="offset points",
                fontsize=9,
                weight="bold" if is_killed else "normal",
                color="#A00000" if is_killed else "black",
                va="center",
            )
            return


EXPERIMENT: Final = Experiment(
    name=NAME, title="Two guests on a host with memory for one, with reporting and without", run=run, draw=draw
)
