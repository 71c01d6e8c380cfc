"""Unix sockets to listen on: which paths are taken, which are refused, and what is left at the end."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.errors import BalloonError
from protocol.process.listening_socket import OWNER_ALONE, ListeningSocket, SocketAccess
from tests.harness.processes import DEADLINE, ROOT


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


def test_lock_file_goes_with_the_socket(tmp_path: Path) -> None:
    listening = ListeningSocket(tmp_path / "c", "--control")
    assert {path.name for path in tmp_path.iterdir()} == {"c", "c.lock"}
    listening.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BalloonError):
        ListeningSocket(tmp_path / ("l" * 120), "--control")
    assert list(tmp_path.iterdir()) == []


def test_lock_file_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "c.lock").touch()
    listening = ListeningSocket(tmp_path / "c", "--control")
    listening.close()
    assert list(tmp_path.iterdir()) == []


def test_lock_is_held_also_without_the_socket_file(tmp_path: Path) -> None:
    listening = ListeningSocket(tmp_path / "c", "--control")
    (tmp_path / "c").unlink()
    with pytest.raises(BalloonError, match=r"^--control .*/c: another process listens there$"):
        ListeningSocket(tmp_path / "c", "--control")
    listening.close()


CONTENDER = """
import sys
from pathlib import Path
from protocol.errors import BalloonError
from protocol.process.listening_socket import ListeningSocket
sys.stdin.readline()
try:
    listening = ListeningSocket(Path(sys.argv[1]), "--control")
except BalloonError as error:
    print(error, flush=True)
else:
    print("listens", listening.path.name, flush=True)
    sys.stdin.readline()
"""


def test_stale_socket_found_by_several_processes_goes_to_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "c"))
    contenders = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(tmp_path / "c")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    answers = []
    for contender in contenders:
        assert contender.stdin is not None
        contender.stdin.write("go\n")
        contender.stdin.flush()
    for contender in contenders:
        assert contender.stdout is not None
        answers.append(contender.stdout.readline().strip())
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "c"))
    for contender in contenders:
        contender.communicate("end\n", timeout=DEADLINE)
    assert sorted(answers) == [f"--control {tmp_path}/c: another process listens there"] * 3 + ["listens c"]


def test_permissions_and_group_of_the_socket_file(tmp_path: Path) -> None:
    group = os.getgid()
    mask = os.umask(0o022)
    try:
        for access, mode in (
            (SocketAccess(), 0o755),
            (OWNER_ALONE, 0o600),
            (SocketAccess(0o666), 0o666),
            (SocketAccess(0o660, group), 0o660),
        ):
            listening = ListeningSocket(tmp_path / "c", "--control", access)
            status = (tmp_path / "c").stat()
            listening.close()
            assert (status.st_mode & 0o777, status.st_gid) == (mode, group)
    finally:
        os.umask(mask)


def test_group_that_cannot_be_given_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(BalloonError, match=r"^--control .*/c: Operation not permitted$"):
        ListeningSocket(tmp_path / "c", "--control", SocketAccess(0o660, 1))
    assert list(tmp_path.iterdir()) == []


def test_access_can_be_changed_and_taken_back(tmp_path: Path) -> None:
    listening = ListeningSocket(tmp_path / "c", "--vm")
    begun = (tmp_path / "c").stat()
    group = next(iter({*os.getgroups(), os.getegid()} - {begun.st_gid}), begun.st_gid)
    listening.give(SocketAccess(0o640, group))
    now = (tmp_path / "c").stat()
    assert (now.st_mode & 0o777, now.st_gid) == (0o640, group)
    listening.give(SocketAccess())
    now = (tmp_path / "c").stat()
    assert (now.st_mode, now.st_gid) == (begun.st_mode, begun.st_gid)
    listening.close()


def test_mode_by_umask_comes_back_after_another(tmp_path: Path) -> None:
    plain, owner = ListeningSocket(tmp_path / "a", "--vm"), ListeningSocket(tmp_path / "b", "--vm", OWNER_ALONE)
    owner.give(SocketAccess())
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "a").stat().st_mode
    plain.close()
    owner.close()
