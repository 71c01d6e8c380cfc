"""Tables and lists of text."""

from typing import Any

import pytest

from host.balloonctl.table import cut, event_line, facts_list, short_size, short_time, status_table, wrapped
from host.control.vm_facts import describe
from tests.host.control.fake_vm import INFO

MIB = 1 << 20


def entry(**members: Any) -> dict[str, Any]:
    """Return an entry of ``query-vms`` with other members."""
    return describe(1, INFO, 5 * MIB) | members


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0"),
        (1, "1B"),
        (999, "999B"),
        (1000, "1.0K"),
        (1536, "1.5K"),
        (10 << 10, "10K"),
        (1023 << 10, "1.0M"),
        (512 * MIB, "512M"),
        (3 << 29, "1.5G"),
        (5 << 50, "5P"),
        ((1 << 64) - 1, "16E"),
    ],
)
def test_sizes_are_short(size: int | None, text: str) -> None:
    assert short_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.4, "0s"), (99.4, "99s"), (120, "2m"), (7200, "2h"), (9 * 86400, "9d")]
)
def test_times_are_short(seconds: float | None, text: str) -> None:
    assert short_time(seconds) == text


def test_table_has_what_the_width_allows() -> None:
    rows = [("1", entry()), ("12", entry(name="a-name-that-is-too-long", health=["poison", "front-end-stuck"]))]
    whole = status_table(rows, None)
    assert whole[0].split()[:6] == ["VM", "NAME", "PID", "MEMORY", "FREE", "HOST"]
    assert whole[1].split() == ["1", "qemu", "4711", "1G", "-", "5M", "12M", "8M", "0", "1s", "ok"]
    assert whole[2].endswith("poison, front-end-stuck")
    assert "a-name-that-is-" in whole[2]
    narrow = status_table(rows, 80)
    assert "PID" not in narrow[0]
    assert max(map(len, narrow)) <= 80
    assert all(word in status_table(rows, 30)[0] for word in ("VM", "MEMORY", "HOST"))
    assert max(map(len, status_table(rows, 30))) <= 30


def test_terminal_is_not_obeyed_by_a_name() -> None:
    assert status_table([("1", entry(name="a\x1b[2J\u754c"))], None)[1].split()[1] == "a?[2J?"
    assert "\x1b" not in "".join(status_table([("1", entry(name="\x1b[31m"))], None))
    assert cut("abc", 2) == "a\u2026"


def test_facts_have_names_and_units() -> None:
    lines = facts_list(entry(inhibited={"by": "operator", "why": "a snapshot"}))
    assert "host-backed:           5242880 (5M)" in lines
    assert "  why                  a snapshot" in lines
    assert "driver-ready:          yes" in lines
    assert "acknowledge:           -" in lines
    busy = facts_list(entry(discard={"counts": [1, 3], "seconds": 0.0004}))
    assert "discard:               100 us on average of 4 chains" in busy
    assert "age:                   12.5 s" in busy
    slow = facts_list(entry(discard={"counts": [1], "seconds": 0.173}))
    assert "discard:               173.0 ms on average of 1 chains" in slow


def test_events_are_lines() -> None:
    data = {"vm": 3, "reported-bytes": 4 * MIB, "reports": 2, "inflated-pages": 512, "deflated-pages": 0}
    assert event_line("12:00:01", "vm 3", "VM_TRAFFIC", data) == (
        "12:00:01 vm 3   traffic          reported 4M, reports 2, inflated 2M"
    )
    assert event_line("12:00:01", "vm 3", "VM_FEATURES", {"vm": 3, "negotiated": ["a", "b"], "queues": 0}) == (
        "12:00:01 vm 3   features         negotiated a b, queues 0"
    )
    reclaimed = {"discarded-bytes": MIB, "seconds": 7.514701, "complete": True, "stopped-by": None}
    assert event_line("12:00:01", "vm 3", "VM_RECLAIMED", reclaimed) == (
        "12:00:01 vm 3   reclaimed        discarded 1M, seconds 7.5, complete yes"
    )


def test_facts_are_wrapped_at_words() -> None:
    lines = facts_list(entry(offered=["page-reporting", "statistics", "deflate-on-oom", "event-idx"]), 60)
    assert max(map(len, lines)) <= 60
    at = next(at for at, line in enumerate(lines) if line.startswith("offered:"))
    assert lines[at : at + 2] == [
        "offered:               page-reporting statistics",
        "                       deflate-on-oom event-idx",
    ]
    assert wrapped("word " * 30, 20, 30)[1].startswith("  word")
