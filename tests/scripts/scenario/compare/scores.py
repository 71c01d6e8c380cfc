"""Scores to compare, without playing."""

from scripts.scenario.score import Score


def score(memory: float, stall: float = 0.0, oom: int = 0) -> Score:
    """Return a score with these GiB*minutes, seconds of stall time and OOM events, the rest 0."""
    return Score(
        host_gib_minutes=memory,
        peak_bytes=0,
        refaulted_bytes=0,
        stall_seconds=stall,
        oom_events=oom,
        control_actions=0,
        reclaim_cpu_seconds=0.0,
        finished_vms=0,
        killed_vms=0,
        corrupted_pages=0,
    )
