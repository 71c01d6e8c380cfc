"""Events and decisions of a run as lines for people. Names of machines are foreign text."""

from collections.abc import Mapping
from typing import Any, Final

from host.policy.policy import SetBalloon
from host.terminal_view.styled_line import Style, printable
from scripts.scenario.run_record import RecordedDecision
from scripts.scenario.view.picture import Note, short_size

UNTOLD: Final = frozenset(
    "listening connected features memory report statistics inflate deflate hint hinting balloon target booted attached "  # noqa: SIM905
    "config message detached disconnected suppressed status".split()
)
"""Events that are figures, or come with every machine: the rows show what they mean."""

_BAD: Final = frozenset(("oom_killed", "out_of_memory", "failed", "corrupted", "fault", "policy_fault"))
_WARNING: Final = frozenset(("refused", "queue_stopped", "oom_deflate", "not_replaced", "interrupted"))
_HIDDEN: Final = frozenset(("t", "time", "event", "side", "vm", "session", "verified_pages", "reason", "message"))
_WHY: Final = ("reason", "message")
_MOST_ACTIONS: Final = 3


def event_note(event: Mapping[str, Any]) -> Note | None:
    """Return the line of an event, None for one that is not told."""
    name = str(event["event"])
    if name in UNTOLD:
        return None
    style = Style.BAD if name in _BAD else Style.WARNING if name in _WARNING else Style.PLAIN
    if name == "finished":
        style = Style.GOOD
    words = [str(event["vm"])] if "vm" in event else []
    words.append(name.replace("_", " "))
    words += [_field(key, value) for key, value in event.items() if key not in _HIDDEN and value not in (0, None)]
    why = "".join(f": {event[key]}" for key in _WHY if event.get(key))
    return Note(float(event["t"]), printable(" ".join(words) + why), style)


def _field(key: str, value: object) -> str:
    if key == "name":
        return str(value)
    if key.endswith("bytes") and isinstance(value, int):
        return f"{key.removesuffix('_bytes').removesuffix('bytes')} {short_size(value)}".strip()
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{key.replace('_', ' ')} {text}"


def decision_note(decision: RecordedDecision) -> Note:
    """Return the line of a decision of the policy: what it asks for, and why."""
    if decision.error is not None:
        return Note(decision.t, printable(f"{decision.policy}: {decision.error}"), Style.BAD)
    asked = [
        f"{action.vm} balloon {short_size(action.size)}"
        if isinstance(action, SetBalloon)
        else f"{action.vm} reclaim {'' if action.size is None else short_size(action.size)}".rstrip()
        for action in decision.actions[:_MOST_ACTIONS]
    ]
    if len(decision.actions) > _MOST_ACTIONS:
        asked.append(f"{len(decision.actions) - _MOST_ACTIONS} more")
    what = ", ".join(asked) or "nothing"
    return Note(decision.t, printable(f"{decision.policy}: {what}{': ' if decision.reason else ''}{decision.reason}"))
