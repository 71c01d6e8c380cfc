"""Lines of styled text: what a terminal may show, and in how many columns."""

import pytest

from host.terminal_view.styled_line import (
    Line,
    Span,
    Style,
    apart,
    clipped,
    column,
    cut,
    fitting,
    line,
    printable,
    wrapped,
)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("web-1 of 2", "web-1 of 2"),
        ("größe µ", "größe µ"),
        ("red\x1b[31m", "red?[31m"),
        ("two\nlines\t\r", "two?lines??"),
        ("c1 \x9b31m", "c1 ?31m"),
        ("left\u202eright", "left?right"),
        ("wide 漢", "wide ?"),
        ("e\u0301", "e?"),
        ("no\u00a0break\u2028", "no?break?"),
    ],
)
def test_foreign_text_has_one_column_for_each_character_and_no_controls(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert len(printable(name)) == len(name)


def test_a_cut_text_is_marked() -> None:
    assert cut("staggered", 9) == "staggered"
    assert cut("staggered", 5) == "stag~"
    assert cut("staggered", 0) == ""
    assert column("a", 3) == "a  "
    assert column("abcd", 3) == "ab~"


def test_spans_are_clipped_at_the_column() -> None:
    spans = (Span("abc", Style.GOOD), Span("def", Style.BAD))
    assert clipped(spans, 4) == (Span("abc", Style.GOOD), Span("d", Style.BAD))
    assert clipped(spans, 3) == (Span("abc", Style.GOOD),)


def test_right_end_stays_and_left_gives_way() -> None:
    assert line(*apart([Span("left")], [Span("right")], 12)).text == "left   right"
    assert line(*apart([Span("a long left")], [Span("right")], 10)).text == "a lo right"
    assert line(*apart([Span("left")], [Span("a longer right")], 10)).text == "a longer r"


def test_pieces_are_wrapped_whole() -> None:
    assert wrapped(["free:", "delay 12 M", "budget 3 M"], 18, 2) == ["free:  delay 12 M", "  budget 3 M"]
    assert wrapped(["much too long"], 6, 0) == ["much ~"]
    assert wrapped([], 6, 0) == []


def test_lines_of_the_highest_rank_give_way_from_the_last() -> None:
    lines = [Line((Span(name),), rank) for name, rank in (("a", 0), ("b", 2), ("c", 1), ("d", 2), ("e", 0))]
    assert [entry.text for entry in fitting(lines, 4)] == ["a", "b", "c", "e"]
    assert [entry.text for entry in fitting(lines, 2)] == ["a", "e"]
    assert [entry.text for entry in fitting(lines, 1)] == ["a"]
