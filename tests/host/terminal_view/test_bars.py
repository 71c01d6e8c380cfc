"""Bars of memory."""

from host.terminal_view.bars import ASCII, UNICODE, Part, bar
from host.terminal_view.styled_line import Style, line


def text(parts: list[tuple[str, int]], whole: int, width: int) -> str:
    return line(*bar([Part(symbol, Style.PLAIN, amount) for symbol, amount in parts], whole, width, ".")).text


def test_parts_that_add_up_fill_the_bar() -> None:
    assert text([("#", 1), ("%", 1), (":", 1)], 3, 10) == "###%%%%:::"
    assert text([("#", 5), ("%", 2)], 10, 10) == "#####%%..."


def test_what_exceeds_the_whole_is_cut() -> None:
    assert text([("#", 15), ("%", 3)], 10, 4) == "####"
    assert text([("#", 1)], 0, 4) == "...."
    assert text([("#", -5), ("%", 5)], 10, 4) == "%%.."


def test_kinds_of_memory_differ_without_colours() -> None:
    for symbols in (UNICODE, ASCII):
        kinds = (symbols.in_use, symbols.free, symbols.reported, symbols.balloon, symbols.resident, symbols.empty)
        assert len({*kinds}) == len(kinds)
        assert all(len(kind) == 1 for kind in kinds)
    assert all(symbol.isascii() for symbol in (ASCII.in_use, ASCII.free, ASCII.boundary, ASCII.up_down))
