"""Events and decisions as lines for people."""

from typing import Any

import pytest

from host.policy.policy import Reclaim, SetBalloon
from host.terminal_view.styled_line import Style
from protocol.units import MIB
from scripts.scenario.run_record import RecordedDecision
from scripts.scenario.view.words import decision_note, event_note


@pytest.mark.parametrize(
    ("event", "text", "style"),
    [
        ({"event": "started", "vm": "a", "memory_bytes": 256 * MIB}, "a started memory 256M", Style.PLAIN),
        ({"event": "phase", "vm": "a", "name": "hold", "time": "x", "side": "guest"}, "a phase hold", Style.PLAIN),
        (
            {"event": "oom_killed", "vm": "b", "resident_bytes": 5 * MIB, "reason": "a needs it"},
            "b oom killed resident 5M: a needs it",
            Style.BAD,
        ),
        ({"event": "finished", "vm": "a", "verified_pages": 7, "corrupted_pages": 0}, "a finished", Style.GOOD),
        ({"event": "refused", "vm": "a", "reason": "unaligned", "bytes": 0}, "a refused: unaligned", Style.WARNING),
        ({"event": "policy_fault", "message": "x\x1b[2J"}, "policy fault: x?[2J", Style.BAD),
        ({"event": "later", "vm": "a\n", "share": 0.25}, "a? later share 0.25", Style.PLAIN),
    ],
)
def test_an_event_is_a_line(event: dict[str, Any], text: str, style: Style) -> None:
    note = event_note({"t": 1.5, **event})
    assert note is not None
    assert (note.t, note.text, note.style) == (1.5, text, style)


def test_figures_are_not_told() -> None:
    assert event_note({"t": 1.0, "event": "memory", "free_bytes": 3}) is None
    assert event_note({"t": 1.0, "event": "report", "vm": "a"}) is None


def test_a_decision_is_what_it_asks_for_and_why() -> None:
    actions = (SetBalloon("a", 64 * MIB), Reclaim("b"), Reclaim("c", MIB), SetBalloon("d", 0), SetBalloon("e", 0))
    note = decision_note(RecordedDecision(t=2.0, policy="mom", reason="host is short", actions=actions))
    assert note.text == "mom: a balloon 64M, b reclaim, c reclaim 1M, 2 more: host is short"
    assert decision_note(RecordedDecision(t=2.0, policy="mom", reason="")).text == "mom: nothing"
    fault = decision_note(RecordedDecision(t=2.0, policy="mom", reason="as before", error="raised ValueError"))
    assert (fault.text, fault.style) == ("mom: raised ValueError", Style.BAD)
