"""The client on the command line: what it makes of words, and of whoever answers."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from host.control.control_client import ask, parse_arguments
from protocol.errors import BalloonError, UsageError

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
DEADLINE = 20.0


@contextmanager
def answering(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """Listen, say ``answers`` to one client, each but the first when it has sent something, and hang up."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(DEADLINE)
                for number, answer in enumerate(answers):
                    if number > 0:
                        heard.append(connection.recv(1 << 16))
                    connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        yield heard
        server.join(DEADLINE)
        assert not server.is_alive()


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
def test_words_that_are_no_arguments(words: Sequence[str]) -> None:
    with pytest.raises(UsageError):
        parse_arguments(words)


def test_events_in_between_are_passed_over(tmp_path: Path) -> None:
    event = b'{"event": "BALLOON_CHANGE", "data": {"actual": 1}}\r\n'
    with answering(tmp_path / "c", GREETING, event + b'{"return": {}}' + event, b'{"return": [1]}') as heard:
        assert ask(tmp_path / "c", "query-vms", {"vm": 1}) == [1]
    assert heard == [b'{"execute": "qmp_capabilities"}\n', b'{"execute": "query-vms", "arguments": {"vm": 1}}\n']


def test_long_answer(tmp_path: Path) -> None:
    long = b'{"return": "' + b"x" * 1_000_000 + b'"}'
    with answering(tmp_path / "c", GREETING, b'{"return": {}}', long):
        assert ask(tmp_path / "c", "query-vms", {}) == "x" * 1_000_000


@pytest.mark.parametrize(
    ("answers", "kind", "text"),
    [
        ([GREETING, b'{"return": {}}', b'{"error": {"class": "GenericError", "desc": "no"}}'], BalloonError, "^no$"),
        ([GREETING, b'{"return": {}}', b""], BalloonError, "closed the connection"),
        ([b'{"error": {"desc": "there are 32 clients already"}}'], BalloonError, "32 clients"),
        ([b"SSH-2.0-x\r\n"], BalloonError, "not a control socket"),
        ([b'{"error": 1}'], BalloonError, "closed the connection"),
    ],
)
def test_whoever_answers_otherwise(tmp_path: Path, answers: list[bytes], kind: type[Exception], text: str) -> None:
    with answering(tmp_path / "c", *answers), pytest.raises(kind, match=text):
        ask(tmp_path / "c", "query-vms", {})


def test_socket_where_nobody_speaks_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the one where virtual machines connect."""
    monkeypatch.setattr("host.control.control_client._GREETING_TIMEOUT", 0.01)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "c"))
        silent.listen()
        with pytest.raises(BalloonError, match=r"not a control socket: it says nothing for 0\.01 s"):
            ask(tmp_path / "c", "query-vms", {})


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(BalloonError, match="No such file or directory"):
        ask(tmp_path / "c", "query-vms", {})
