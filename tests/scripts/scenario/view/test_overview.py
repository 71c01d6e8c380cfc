"""The overview, as a person sees it."""

from pathlib import Path

import pytest

from host.terminal_view.bars import ASCII, UNICODE
from host.terminal_view.styled_line import Style
from protocol.units import GIB
from scripts.scenario.run_record import Sample, VmSample, VmState
from scripts.scenario.scenario import Scenario, VmSpec
from scripts.scenario.view.overview import Pace, host_lines, overview, shown_rows
from tests.scripts.scenario.view.pictures import SCENARIO, picture, texts

PACE = Pace(speed=10.0)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 16), (200, 50)])
def test_overview_at_each_size(width: int, height: int) -> None:
    """The pictures beside this file were looked at. What a change does to them is to be looked at too."""
    lines = overview(picture(), PACE, UNICODE, 0, width, height - 1)
    seen = Path(__file__).with_name(f"overview-{width}x{height}.txt").read_text(encoding="utf-8")
    assert texts(lines) == seen.splitlines()
    assert len(lines) < height
    assert max(len(entry.text) for entry in lines) <= width


def test_ascii_needs_no_other_character() -> None:
    assert all(entry.text.isascii() for entry in overview(picture(), PACE, ASCII, None, 80, 23))


def test_a_name_does_not_command_the_terminal() -> None:
    shown = "".join(entry.text for entry in overview(picture(), PACE, UNICODE, 1, 200, 49))
    assert "\x1b" not in shown
    assert "batch?[31m" in shown


def test_selected_row_is_marked_by_a_character() -> None:
    lines = texts(overview(picture(), PACE, UNICODE, 2, 80, 23))
    assert [entry[:8] for entry in lines if entry.startswith(">")] == ["> linux "]


def test_all_together_without_a_selection() -> None:
    lines = texts(overview(picture(), PACE, UNICODE, None, 80, 23))
    assert any(entry.startswith("all: allocated 576M  free 1.12G  reported 960M") for entry in lines)
    assert any(entry == "free, yet backed 193M:  delay 128M  below order 61M  pcp 4M" for entry in lines)


def test_real_kernel_does_not_tell() -> None:
    lines = texts(overview(picture(), PACE, UNICODE, 2, 80, 23))
    assert "linux: a real kernel, which does not tell what is inside" in lines


def test_waiting_machine_says_when_it_starts() -> None:
    assert "late: starts at 0:30:00, 1.00G" in texts(overview(picture(), PACE, UNICODE, 4, 80, 23))


@pytest.mark.parametrize(
    ("pace", "text"),
    [
        (Pace(), "real time"),
        (Pace(speed=2.0), "2x"),
        (Pace(speed=float("inf")), "unlimited"),
        (Pace(speed=0.5, is_paused=True), "PAUSED (0.5x)"),
        (Pace(is_paused=True, is_leaving=True), "ENDING"),
    ],
)
def test_pace_in_words(pace: Pace, text: str) -> None:
    assert pace.text == text
    assert f"{text}  0:12:34 of 1:00:00" in texts(overview(picture(), pace, UNICODE, None, 80, 23))[0]


def test_full_host_says_so() -> None:
    first, *_ = host_lines(picture(), UNICODE, 80)
    assert first.text.endswith(" 98% FULL")
    assert first.spans[1].style is Style.BAD
    roomy = picture(sample=Sample(t=1.0, used_bytes=GIB))
    first, second, *_ = host_lines(roomy, UNICODE, 80)
    assert "FULL" not in first.text
    assert " 50%" in first.text
    assert "pressure -" in second.text


def test_rows_are_a_window_around_the_selected_one() -> None:
    assert shown_rows(5, 4, 5) == range(5)
    assert shown_rows(100, None, 5) == range(5)
    assert shown_rows(100, 50, 5) == range(48, 53)
    assert shown_rows(100, 99, 5) == range(95, 100)


@pytest.mark.parametrize("height", range(1, 30))
@pytest.mark.parametrize("count", [1, 3, 40])
def test_every_height_has_title_selected_row_and_fits(count: int, height: int) -> None:
    vms = tuple(VmSpec(name=f"vm-{number}", memory_bytes=GIB) for number in range(count))
    scenario = Scenario(name="many", title="many", budget_bytes=GIB, duration=10.0, vms=vms)
    sample = Sample(t=1.0, used_bytes=0, vms={vm.name: VmSample(state=VmState.RUNNING) for vm in vms})
    lines = texts(overview(picture(scenario=scenario, sample=sample), PACE, UNICODE, count - 1, 60, height))
    assert len(lines) <= height
    assert lines[0].startswith("many, policy")
    if height >= 6:
        assert any(entry.startswith(f"> vm-{count - 1} ") for entry in lines)


def test_columns_follow_the_names() -> None:
    lines = texts(overview(picture(), PACE, UNICODE, None, 80, 23))
    head = next(entry for entry in lines if entry.startswith("  machine"))
    rows = [entry for entry in lines if any(entry.startswith(f"  {vm.name} ") for vm in SCENARIO.vms)]
    assert {entry.rindex("/") for entry in rows} == {head.rindex("/")}
