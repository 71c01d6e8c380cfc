"""The score of a run: what memory cost the host, and what saving it cost the machines."""

from dataclasses import asdict, dataclass
from typing import Any

from host.policy.policy import Reclaim
from scripts.scenario.run_record import RunRecord, VmState


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Sums over all machines. ``host_gib_minutes`` is the host's memory over time, ``peak_bytes`` the most at once.

    ``refaulted_bytes`` were given back and then needed again; ``stall_seconds`` is what programs waited for memory.
    ``oom_events`` counts machines that the host killed and workloads that ran out of their guest's memory.
    ``control_actions`` counts what the policy asked for: a balloon's size where it differs from the one before, and
    every reclaim. ``reclaim_cpu_seconds`` is processor time. ``daemon_cpu_seconds`` is that of the whole daemon, its
    discards included; None in a virtual run. ``faulty_decisions`` are those in whose place the last one stood; None
    where that was not counted.
    """

    host_gib_minutes: float
    peak_bytes: int
    refaulted_bytes: int
    stall_seconds: float
    oom_events: int
    control_actions: int
    reclaim_cpu_seconds: float
    finished_vms: int
    killed_vms: int
    corrupted_pages: int
    daemon_cpu_seconds: float | None = None
    faulty_decisions: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the score as JSON values, seconds and GiB*minutes rounded to six places."""
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}


def score_of(record: RunRecord) -> Score:
    """Return the score of a run, as far as it has come."""
    outcomes = record.outcomes.values()
    return Score(
        host_gib_minutes=record.gib_minutes,
        peak_bytes=record.peak_bytes,
        refaulted_bytes=sum(outcome.refaulted_bytes for outcome in outcomes),
        stall_seconds=sum(outcome.stall_seconds for outcome in outcomes),
        oom_events=sum(event["event"] in ("oom_killed", "out_of_memory") for event in record.events),
        control_actions=_control_actions(record),
        reclaim_cpu_seconds=sum(outcome.reclaim_cpu_seconds for outcome in outcomes),
        finished_vms=sum(outcome.state is VmState.FINISHED for outcome in outcomes),
        killed_vms=sum(outcome.state is VmState.OOM_KILLED for outcome in outcomes),
        corrupted_pages=sum(outcome.corrupted_pages for outcome in outcomes),
        daemon_cpu_seconds=record.daemon_cpu_seconds,
        faulty_decisions=sum(decision.error is not None for decision in record.decisions),
    )


def _control_actions(record: RunRecord) -> int:
    actions = 0
    sizes: dict[str, int] = {}
    for decision in record.decisions:
        for action in decision.actions:
            if isinstance(action, Reclaim):
                actions += 1
            elif sizes.get(action.vm, 0) != action.size:
                actions += 1
                sizes[action.vm] = action.size
    return actions
