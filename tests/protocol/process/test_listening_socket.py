"""Unix sockets to listen on: which paths are taken, which are refused, and what is left at the end."""

import socket
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from protocol.process.listening_socket import ListeningSocket


def test_socket_listens_and_its_file_goes_with_it(tmp_path: Path) -> None:
    listening = ListeningSocket(tmp_path / "c", "--control")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "c"))
    listening.close()
    assert not (tmp_path / "c").exists()


def test_socket_of_a_living_process_stays(tmp_path: Path) -> None:
    first = ListeningSocket(tmp_path / "c", "--control")
    with pytest.raises(BalloonError, match=r"^--control .*/c: another process listens there$"):
        ListeningSocket(tmp_path / "c", "--control")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "c"))
    first.close()


def test_socket_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "c"))
    listening = ListeningSocket(tmp_path / "c", "--control")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "c"))
    listening.close()


def test_file_that_took_the_place_of_the_socket_stays(tmp_path: Path) -> None:
    listening = ListeningSocket(tmp_path / "c", "--control")
    (tmp_path / "c").unlink()
    (tmp_path / "c").write_text("another's", encoding="ascii")
    listening.close()
    assert (tmp_path / "c").read_text(encoding="ascii") == "another's"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("file", "exists and is not a socket"), ("no/such", "No such file or directory"), ("l" * 120, "too long")],
)
def test_path_where_no_socket_can_be_made_is_refused(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(BalloonError, match=f"^--control .*: .*{complaint}"):
        ListeningSocket(tmp_path / name, "--control")
    assert (tmp_path / "file").read_text(encoding="ascii") == ""
