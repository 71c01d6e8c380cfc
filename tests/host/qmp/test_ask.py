"""One command from a command line: what its words mean, and what each kind of answer becomes."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from host.qmp.ask import ask, parse_arguments
from protocol.errors import BalloonError, UsageError
from tests.harness.scripted_server import answering

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
NEGOTIATED = b'{"return": {}}'


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ([], {}),
        (["value=512M", "vm=2"], {"value": 512 << 20, "vm": 2}),
        (["method=hint", "path=/machine", "empty="], {"method": "hint", "path": "/machine", "empty": ""}),
        (['enable=["oob"]', "flag=true", 'text="1"'], {"enable": ["oob"], "flag": True, "text": "1"}),
        (["x=a=b", "big=" + "9" * 5000], {"x": "a=b", "big": "9" * 5000}),
    ],
)
def test_words_become_arguments(words: Sequence[str], arguments: dict[str, object]) -> None:
    assert parse_arguments(words) == arguments


@pytest.mark.parametrize("words", [["512M"], ["=1"], ["value=1", "value=1"]])
def test_words_of_another_form_are_refused(words: Sequence[str]) -> None:
    with pytest.raises(UsageError):
        parse_arguments(words)


def test_events_before_the_answer_are_passed_over(tmp_path: Path) -> None:
    event = b'{"event": "BALLOON_CHANGE", "data": {"actual": 1}}\r\n'
    with answering(tmp_path / "c", GREETING, event + NEGOTIATED + event, b'{"return": [1]}') as lines:
        assert ask(tmp_path / "c", "query-vms", {"vm": 1}) == [1]
    assert lines == [b'{"execute": "qmp_capabilities"}\n', b'{"execute": "query-vms", "arguments": {"vm": 1}}\n']


def test_negotiation_is_asked_for_once(tmp_path: Path) -> None:
    with answering(tmp_path / "c", GREETING, NEGOTIATED) as lines:
        assert ask(tmp_path / "c", "qmp_capabilities", {}) == {}
    assert lines == [b'{"execute": "qmp_capabilities"}\n']


def test_error_is_told_in_the_servers_words(tmp_path: Path) -> None:
    refusal = b'{"error": {"class": "GenericError", "desc": "no"}}'
    with answering(tmp_path / "c", GREETING, NEGOTIATED, refusal), pytest.raises(BalloonError, match=r"^no$"):
        ask(tmp_path / "c", "query-vms", {})


def test_missing_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(BalloonError, match="/c: No such file or directory"):
        ask(tmp_path / "c", "query-vms", {})
