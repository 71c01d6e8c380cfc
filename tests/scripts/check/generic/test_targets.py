"""What is no vhost-user back-end is told from one by one clear line, before a case is judged."""

import shlex
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from protocol.errors import UsageError
from protocol.vhost_user import HEADER_SIZE, FrontendRequest, form_of
from scripts.check.__main__ import main
from scripts.check.generic.backend import Backend, open_backend
from scripts.check.machine import connection
from scripts.check.verdict import TargetError
from tests.harness.scripted_server import answering


def complaint(path: Path, start: str | None = None) -> str:
    """Return the line that says why there is no back-end at ``path``."""
    with pytest.raises(TargetError) as caught, open_backend(path, start):
        pass
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert complaint(path) == f"{path}: No such file or directory"


def test_no_listener(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    assert complaint(path) == f"{path}: Connection refused"


def test_peer_that_hangs_up_at_once(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with answering(path):
        assert complaint(path) == f"{path}: the connection was closed instead of an answer to GET_FEATURES"


def test_peer_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "DEADLINE", 0.2)
    path = tmp_path / "socket"
    with answering(path, b"", b""):
        assert complaint(path) == f"{path}: GET_FEATURES: no reply within 0.2 s (0 of 12 bytes came)"


def test_peer_that_answers_something_else(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with answering(path, b"HTTP/1.1 400", b""):
        assert "bytes of payload" in complaint(path)


def test_peer_that_answers_another_request(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with answering(path, bytes([2, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0]) + bytes(8), b""):
        assert "no vhost-user back-end: GET_FEATURES was answered with 0200000005000000" in complaint(path)


@contextmanager
def answering_zero(path: Path, *, asked: bool) -> Iterator[None]:
    """Answer every message, or with ``asked`` those that have a reply, with the number 0, on one connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            ours, _ = listener.accept()
            with ours, suppress(ConnectionError):  # which leaves without reading all
                while header := ours.recv(HEADER_SIZE, socket.MSG_WAITALL):
                    request, _, size = struct.unpack("<III", header)
                    assert not size or ours.recv(size, socket.MSG_WAITALL)
                    if not asked or form_of(FrontendRequest(request)).reply is not None:
                        ours.sendall(struct.pack("<IIIQ", request, 5, 8, 0))

        server = threading.Thread(target=serve)
        server.start()
        yield
        server.join()


def test_peer_that_answers_everything_with_zero(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with answering_zero(path, asked=False):
        assert "SET_OWNER, which has no reply, was answered with 030000000500000008000000" in complaint(path)


def test_peer_that_offers_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "socket"
    with answering_zero(path, asked=True):
        assert main(["device", "--generic", "--socket-path", str(path)]) == 3
    error = capsys.readouterr().err
    assert f"{path}: the back-end offers no feature at all" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["", "  ", "'half a quotation"])
def test_command_that_is_none(tmp_path: Path, command: str) -> None:
    with pytest.raises(UsageError), open_backend(tmp_path / "socket", command):
        pass


@pytest.mark.processes
def test_command_that_does_not_exist(tmp_path: Path) -> None:
    assert (
        complaint(tmp_path / "socket", "/nowhere/back-end") == "--start: /nowhere/back-end: No such file or directory"
    )


@pytest.mark.processes
def test_command_that_ends_says_why(tmp_path: Path) -> None:
    script = "echo first >&2; echo cannot open the disk >&2; exit 3"
    message = complaint(tmp_path / "socket", f"sh -c {shlex.quote(script)}")
    assert message == "sh ended with status 3: cannot open the disk"


@pytest.mark.processes
def test_command_that_is_killed(tmp_path: Path) -> None:
    assert complaint(tmp_path / "socket", "sh -c 'kill -SEGV $$'") == "sh was ended by SIGSEGV"


def test_back_end_that_ended_after_a_case_is_told_with_how_to_start_it_again(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    backend = Backend(path, None)
    with answering_zero(path, asked=True), backend.fresh():
        pass
    path.unlink()
    hint = r"No such file or directory; one that has ended is started again with --start COMMAND$"
    with pytest.raises(TargetError, match=hint), backend.fresh():
        pass
