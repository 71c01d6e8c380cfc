"""The list of edge cases as data."""

from scripts.check.edges.table import EDGES


def test_edge_cases_are_numbered_from_1_to_155_without_a_gap() -> None:
    assert list(EDGES) == list(range(1, 156))


def test_each_statement_is_a_whole_sentence() -> None:
    for edge in EDGES.values():
        for text in (edge.statement, *filter(None, [edge.not_applicable])):
            assert text[0].isupper(), text
            assert text.endswith("."), text


def test_no_two_edge_cases_say_the_same() -> None:
    assert len({edge.statement for edge in EDGES.values()}) == len(EDGES)
