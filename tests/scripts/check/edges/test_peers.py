"""The entries of other suites and of public reports as data."""

import re
from collections import Counter

from scripts.check.edges.public_reports import IMPLEMENTATIONS
from scripts.check.edges.table import PEERS

NAME = re.compile(r"[a-z0-9-]+/[A-Za-z0-9_.-]+")


def test_names_are_a_suite_and_an_entry() -> None:
    named = [name for peer in PEERS if peer not in IMPLEMENTATIONS for name in peer.names]
    assert [name for name in named if NAME.fullmatch(name) is None] == []


def test_each_name_means_one_entry() -> None:
    counts = Counter(name for peer in PEERS for name in peer.names)
    assert [name for name, count in counts.items() if count > 1] == []


def test_each_entry_has_a_sentence_and_a_reason_that_is_one() -> None:
    for peer in PEERS:
        assert peer.names
        for text in (peer.statement, *filter(None, [peer.not_applicable])):
            assert text.endswith("."), peer.names
            assert len(text.split()) > 2, peer.names


def test_all_balloon_trials_of_the_hostile_guest_are_there() -> None:
    numbers = {name for peer in PEERS for name in peer.names if name.startswith("villain/")}
    expected = {f"villain/L{number:04}" for number in (*range(1, 47), 200, 201)}
    assert numbers == expected
