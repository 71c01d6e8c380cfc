"""Sizes, times and states in few columns."""

import pytest

from host.terminal_view.styled_line import Style
from protocol.units import GIB, MIB, TIB
from scripts.scenario.run_record import Sample, VmSample, VmState
from scripts.scenario.view.picture import short_size, short_time
from tests.scripts.scenario.view.pictures import picture


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0M"),
        (4096, "<1M"),
        (812 * MIB, "812M"),
        (999 * MIB, "999M"),
        (1000 * MIB, "0.98G"),
        (1280 * MIB, "1.25G"),
        (15 * GIB, "15.0G"),
        (640 * GIB, "640G"),
        (1000 * GIB, "0.98T"),
        (40 * TIB, "40.0T"),
        (5000 * TIB, "5000T"),
    ],
)
def test_a_size_has_at_most_five_columns(size: int, text: str) -> None:
    assert short_size(size) == text
    assert len(text) <= 5


def test_times() -> None:
    assert [short_time(t) for t in (0, 12.345, 60, 3723.9)] == ["0.00 s", "12.35 s", "0:01:00", "1:02:03"]


def test_states_in_a_word() -> None:
    shown = picture()
    assert shown.state_of("web") == ("build 3", Style.PLAIN)
    assert shown.state_of("batch\x1b[31m") == ("finished", Style.GOOD)
    assert shown.state_of("linux") == ("running", Style.PLAIN)
    assert shown.state_of("greedy") == ("OOM-killed", Style.BAD)
    assert shown.state_of("late") == ("waiting", Style.FAINT)


def test_failed_is_told_from_died() -> None:
    vms = {"web": VmSample(state=VmState.FAILED, resident_bytes=MIB), "linux": VmSample(state=VmState.FAILED)}
    shown = picture(sample=Sample(t=0.0, used_bytes=0, vms=vms))
    assert shown.state_of("web")[0] == "failed"
    assert shown.state_of("linux")[0] == "died"
