"""The blocking QMP client against a scripted server."""

import socket
import threading
from pathlib import Path

import pytest

from host.qmp.qmp_client import CommandError, QmpClient
from protocol.errors import BalloonError
from tests.harness.scripted_server import answering

GREETING = b'{"QMP": {}}\r\n'
NEGOTIATED = b'{"return": {}}\r\n'


def test_client_keeps_events_and_raises_errors(tmp_path: Path) -> None:
    answers = (
        GREETING,
        NEGOTIATED,
        b'{"event": "RESET"}\r\n{"return": {"status": "running"}}\r\n',
        b'{"error": {"class": "CommandNotFound", "desc": "no such command"}}\r\n',
        b"",
    )
    with answering(tmp_path / "m", *answers) as lines, QmpClient(tmp_path / "m") as client:
        assert client.command("query-status") == {"status": "running"}
        assert [event["event"] for event in client.events] == ["RESET"]
        with pytest.raises(CommandError, match="dance: no such command") as caught:
            client.command("dance", speed=1)
        assert (caught.value.error_class, caught.value.description) == ("CommandNotFound", "no such command")
        with pytest.raises(BalloonError, match="closed the connection without an answer"):
            client.command("query-status")
    assert lines[1:3] == [b'{"execute": "query-status"}\n', b'{"execute": "dance", "arguments": {"speed": 1}}\n']


def test_long_answer_is_received_whole(tmp_path: Path) -> None:
    long = b'{"return": "' + b"x" * 1_000_000 + b'"}'
    with answering(tmp_path / "m", GREETING, NEGOTIATED, long), QmpClient(tmp_path / "m") as client:
        assert client.command("query-vms") == "x" * 1_000_000


@pytest.mark.parametrize(
    ("greeting", "text"),
    [
        (b'{"hello": 1}\n', "/m: not a QMP server$"),
        (b'{"error": 1}', "/m: not a QMP server$"),
        (b"SSH-2.0-x\r\n", "/m: not a QMP server: not JSON"),
        (b'{"error": {"desc": "there are 32 clients already"}}', "^there are 32 clients already$"),
        (b"", "/m: the server closed the connection without an answer"),
    ],
)
def test_server_of_another_kind_is_refused(tmp_path: Path, greeting: bytes, text: str) -> None:
    with answering(tmp_path / "m", greeting), pytest.raises(BalloonError, match=text):
        QmpClient(tmp_path / "m")


def test_socket_that_sends_no_greeting_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the socket where virtual machines connect."""
    monkeypatch.setattr("host.qmp.qmp_client.GREETING_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "m"))
        silent.listen()
        with pytest.raises(BalloonError, match=r"not a QMP server: no greeting within 0\.01 s"):
            QmpClient(tmp_path / "m")


def test_answer_has_its_time(tmp_path: Path) -> None:
    with (
        answering(tmp_path / "m", GREETING, NEGOTIATED, b"", b""),
        QmpClient(tmp_path / "m", answer_seconds=0.01) as client,
        pytest.raises(BalloonError, match=r"/m: no answer within 0\.01 s"),
    ):
        client.command("reclaim")


def test_server_that_is_starting_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()
    with answering(tmp_path / "later", GREETING, NEGOTIATED):

        def start(_seconds: float) -> None:
            (tmp_path / "later").rename(tmp_path / "m")
            started.set()

        monkeypatch.setattr("host.qmp.qmp_client.time.sleep", start)
        QmpClient(tmp_path / "m", start_seconds=20.0).close()
    assert started.is_set()


def test_missing_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(BalloonError, match="/m: No such file or directory"):
        QmpClient(tmp_path / "m")


def test_messages_are_understood_however_they_are_cut(tmp_path: Path) -> None:
    """Long ones in lines, several at once, over several lines, without a line break."""
    long = b'{"return": ["' + b"x" * (1 << 20) + b'"]}\r\n'
    pretty = b'{\n  "return": {\n    "actual": 1\n  }\n}\n'
    answers = (GREETING, NEGOTIATED, b'{"event": "A"}\n' + long, pretty, b'{"return": 2}', long)
    with answering(tmp_path / "m", *answers), QmpClient(tmp_path / "m") as client:
        assert client.command("query-vms") == ["x" * (1 << 20)]
        assert client.command("query-balloon") == {"actual": 1}
        assert client.command("query-x") == 2
        assert client.command("query-vms") == ["x" * (1 << 20)]
        assert client.events == [{"event": "A"}]
