"""Whether a process listens on the daemon's socket."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.linux.daemon_socket import is_listening, require_listening
from protocol.errors import BalloonError


@pytest.fixture
def short_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


def test_listener_is_found_without_connecting(short_directory: Path) -> None:
    path = short_directory / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        assert not is_listening(path)
        with pytest.raises(BalloonError, match="no process listens"):
            require_listening(path)
        listener.listen()
        listener.setblocking(False)
        assert is_listening(path)
        require_listening(path)
        with pytest.raises(BlockingIOError):
            listener.accept()
    with pytest.raises(BalloonError, match="no process listens"):
        require_listening(path)


def test_listener_under_a_relative_name_is_found(short_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(short_directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("s")
        listener.listen()
        require_listening(short_directory / "s")


def test_path_without_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BalloonError, match="No such file"):
        require_listening(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(BalloonError, match="not a socket"):
        require_listening(tmp_path / "file")
