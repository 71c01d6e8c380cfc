"""The demonstration's views: every line fits, bars add up, unknown is not zero."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.terminal_view.bars import ASCII, UNICODE
from host.terminal_view.styled_line import Style
from protocol.units import GIB, MIB
from scripts.demonstration.view import (
    BAR,
    REAL_KERNEL,
    WIDTH,
    bar,
    live_view,
    mib,
    sparkline,
    table_header,
    table_row,
)
from tests.scripts.demonstration.examples import picture, vm


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([], "...."),
        ([("#", 2)], "##.."),
        ([("#", 1), ("%", 1)], "#%.."),
        ([("#", 4)], "####"),
        ([("#", 9)], "####"),
        ([("#", 3), ("%", 3)], "###%"),
        ([("#", 0), ("%", 4)], "%%%%"),
    ],
)
def test_bar_shows_the_parts_of_a_whole(parts: list[tuple[str, int]], text: str) -> None:
    assert bar(parts, 4, 4, ".") == text


@given(amounts=st.lists(st.integers(0, 1 << 40), max_size=4), whole=st.integers(0, 1 << 40), width=st.integers(0, 60))
def test_bar_is_always_as_wide_as_asked(amounts: list[int], whole: int, width: int) -> None:
    assert len(bar([("#", amount) for amount in amounts], whole, width, ".")) == width


def test_sparkline_keeps_the_latest_and_shows_the_smallest_as_something() -> None:
    assert sparkline([9, 9, 0, 1, 50, 100], 100, 4, "_12345") == "_135"
    assert sparkline([0, 0], 0, 4, "_1") == "__"
    assert sparkline([1000], 8, 4, "_12") == "2"


def test_unknown_is_a_dash_and_not_zero() -> None:
    assert mib(None) == "-"
    assert mib(0) == "0"
    assert mib(3 * MIB // 2) == "2"


def test_live_view_shows_what_is_in_use_and_what_is_only_carried() -> None:
    state = vm(resident_bytes=GIB // 2, allocated_bytes=GIB // 4, free_bytes=3 * GIB // 4, reported_bytes=0)
    state.carried_bytes = GIB // 4
    lines = [line.text for line in live_view(picture(state), ASCII)]
    assert "HOST    " + "#" * (BAR // 2) + "." * (BAR // 2) + "  608 of 1216 MiB" in lines
    quarter = BAR // 4
    memory = "        " + "#" * quarter + "%" * quarter + "." * (BAR // 2)
    assert memory + "  512 of 1024 MiB resident" in lines
    assert "        allocated 256, free 768, of it reported 0 MiB" in lines
    assert "Two VMs".ljust(56) + "limit: memory cgroup v1" in lines


def test_memory_filled_since_the_last_event_of_the_guest_is_in_use() -> None:
    state = vm(phase="fill", pid=7, free_bytes=GIB)
    state.apply(
        {"event": "memory", "resident_bytes": GIB // 4, "allocated_bytes": GIB // 4, "free_bytes": 3 * GIB // 4}
    )
    state.measured(GIB // 2)
    bar_line = next(line.text for line in live_view(picture(state), ASCII) if "resident" in line.text)
    assert bar_line.split()[0] == "#" * (BAR // 2) + "." * (BAR // 2)


def test_real_kernel_that_has_freed_everything_is_only_carried() -> None:
    state = vm(resident_bytes=GIB, phase="fill", pid=7)
    text = "".join(line.text for line in live_view(picture(state)))
    assert UNICODE.in_use * BAR in text
    assert "the guest has not told yet" in text
    state.phase = "rest"
    state.inside(10 * MIB, 900 * MIB, 100 * MIB)  # seconds ago
    assert UNICODE.free * BAR in "".join(line.text for line in live_view(picture(state)))


def test_full_host_is_a_warning() -> None:
    shown = picture(vm())
    assert Style.WARNING not in {line.spans[0].style for line in live_view(shown)}
    shown.host.apply(1210 * MIB)
    warning = next(line for line in live_view(shown) if line.spans[0].style is Style.WARNING)
    assert warning.text.endswith("FULL")


@pytest.mark.parametrize("height", [1, 5, 23, 24, 60])
@pytest.mark.parametrize("width", [10, 40, WIDTH])
def test_lines_fit_and_the_end_of_the_story_is_kept(width: int, height: int) -> None:
    shown = picture(vm(status="x" * 200, kind="real Linux kernel"), vm(name="B"))
    shown.story = [(float(number), f"event {number} " + "y" * 100) for number in range(40)]
    for _ in range(300):
        shown.tick()
    lines = live_view(shown, UNICODE, width, height)
    assert len(lines) <= height
    assert max(len(line.text) for line in lines) <= width
    if height >= 23:
        assert "event 39" in lines[-1].text or width == 10


def test_narrow_window_keeps_the_numbers_and_shortens_the_bars() -> None:
    state = vm(resident_bytes=GIB // 2, allocated_bytes=GIB // 2)
    lines = [line.text for line in live_view(picture(state), ASCII, width=59)]
    assert "HOST    " + "#" * 12 + "." * 12 + "  608 of 1216 MiB" in lines
    assert "        " + "#" * 12 + "." * 12 + "  512 of 1024 MiB resident" in lines


def test_ordinary_terminal_shows_all_of_it() -> None:
    shown = picture(vm(), vm(name="B"))
    shown.story = [(float(number), f"event {number}") for number in range(5)]
    text = "\n".join(line.text for line in live_view(shown, height=24))
    assert all(part in text for part in ("HOST", "VM A", "VM B", "event 0", "event 4", "costs nothing"))


def test_plain_table_lines_up_with_its_header() -> None:
    states = (
        vm(resident_bytes=768 * MIB, allocated_bytes=0, free_bytes=GIB, reported_bytes=0, phase="rest"),
        vm(name="B", status="not started"),
    )
    first, second = table_header([state.name for state in states])
    row = table_row(picture(*states))
    assert row == (
        "  4.2s     608 |   768     0  1024     0    0  rest         |     0     -     -     -    0  not started"
    )
    bars = [position for position, character in enumerate(row) if character == "|"]
    for line in (first, second):
        assert [position for position, character in enumerate(line) if character == "|"] == bars
    assert second.index("phase") == row.index("rest")


@pytest.mark.parametrize(("columns", "rows"), [(79, 24), (59, 16), (59, 12), (79, 10)])
def test_low_and_narrow_window_shows_the_round_the_bars_and_the_newest_of_the_story(columns: int, rows: int) -> None:
    shown = picture(vm(), vm(name="B"))
    shown.round_title = "2 of 2: WITHOUT free page reporting"
    shown.story += [(float(second), f"step {second}") for second in range(6)]
    lines = [line.text for line in live_view(shown, ASCII, columns, rows)]
    assert len(lines) <= rows
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("2 of 2: WITHOUT free page reporting")
    assert sum("MiB resident" in line for line in lines) == 2
    assert lines[-1].endswith("step 5")


def test_time_that_is_left_counts_down_and_includes_the_rounds_to_come() -> None:
    shown = picture(vm())
    shown.expected_seconds, shown.seconds_after, shown.seconds = 10.0, 9.0, 4.25
    assert shown.seconds_left == 15
    shown.seconds = 100.0
    assert shown.seconds_left == 9
    shown.seconds_after = 0.0
    assert shown.seconds_left == 1


def test_age_of_what_a_real_kernel_tells_is_said() -> None:
    assert not any("real kernel" in line.text for line in live_view(picture(vm())))
    assert any("by a real kernel 2 s ago" in line.text for line in live_view(picture(vm(kind=REAL_KERNEL))))
