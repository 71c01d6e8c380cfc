"""A keeper whose daemon is a script."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from host.service_manager.keeper import Keeper
from protocol.errors import BalloonError
from tests.harness.processes import DEADLINE, ROOT

KEEPER = """\
import sys
from pathlib import Path
from host.service_manager.keeper import Keeper
keeper = Keeper(Path(sys.argv[1]), [sys.executable, "-S", "-c", sys.argv[2]], print)
status = keeper.run()
keeper.close()
sys.exit(status)
"""

DAEMON = """\
import os, signal, socket, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect(os.environ["NOTIFY_SOCKET"])
def store(name, data):
    reading, writing = os.pipe()
    os.write(writing, data)
    socket.send_fds(sock, [b"FDSTORE=1\\nFDNAME=" + name], [reading])
names = os.environ.get("LISTEN_FDNAMES", "")
assert os.environ.get("LISTEN_PID", str(os.getpid())) == str(os.getpid())
"""


def keep(path: Path, script: str) -> tuple[int, list[str]]:
    """Return the exit status of a keeper of a script, and what it says."""
    words = [sys.executable, "-c", KEEPER, str(path), DAEMON + script]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=DEADLINE, check=False)
    assert not path.exists()
    return done.returncode, done.stdout.splitlines()


def test_descriptors_come_back_with_their_names_after_a_death_and_an_upgrade(tmp_path: Path) -> None:
    script = """
if not names:
    for name, data in (b"a", b"1"), (b"b", b"2"), (b"a", b"3"), (b"gone", b"4"):
        store(name, data)
    if not os.fork():
        store(b"by another process", b"5")
        os._exit(0)
    os.wait()
    sock.send(b"READY=1")
    sock.send(b"FDSTOREREMOVE=1\\nFDNAME=gone")
    sock.send(b"what is this")
    os.kill(os.getpid(), 9)
elif names == "a:a:b":
    assert [os.read(3 + place, 9) for place in range(3)] == [b"1", b"3", b"2"]
    store(b"d", b"")
    os.kill(os.getppid(), signal.SIGUSR2)
    signal.sigwait([signal.SIGUSR2])
elif names == "a:a:b:d":
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()
"""
    assert keep(tmp_path / "keeper", script) == (
        0,
        [
            "a notification with the line 'what is this'",
            "the daemon has ended (SIGKILL); another one goes on with 3 descriptors",
        ],
    )


def test_daemon_that_was_never_ready_ends_its_keeper(tmp_path: Path) -> None:
    assert keep(tmp_path / "keeper", "sys.exit(3)") == (3, [])


def test_path_that_another_keeper_or_file_has_is_refused(tmp_path: Path) -> None:
    with contextlib.closing(Keeper(tmp_path / "keeper", [], print)):
        with pytest.raises(BalloonError, match="keeper: another keeper has it"):
            Keeper(tmp_path / "keeper", [], print)
        assert (tmp_path / "keeper").stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").touch()
    for name in ("file", "absent/keeper"):
        with pytest.raises(BalloonError, match=f"--keeper .*{name}: "):
            Keeper(tmp_path / name, [], print)
    assert (tmp_path / "file").exists()
