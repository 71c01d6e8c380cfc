"""What a confined process cannot do any more, each tried in a process of its own."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from host.supervision.sandbox import confine

pytestmark = pytest.mark.processes


def outcome(readable: list[Path], action: Callable[[], object]) -> str:
    """Return what becomes of an action in a process that was confined before: an error's name, or what could not be
    given up."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        left = confine(readable)
        try:
            action()
            said = f"done, {left}"
        except OSError as error:
            said = type(error).__name__
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return said


def connect(address: tuple[str, int]) -> None:
    with socket.socket() as sock:
        sock.connect(address)


def test_files_and_the_network_are_out_of_reach(tmp_path: Path) -> None:
    if outcome([], lambda: None) != "done, []":
        pytest.skip("a kernel without Landlock")
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "file").write_text("text")
    (tmp_path / "file").write_text("text")
    allowed = [tmp_path / "allowed", tmp_path / "absent"]
    assert outcome(allowed, (tmp_path / "allowed" / "file").read_text).startswith("done")
    assert outcome(allowed, lambda: (tmp_path / "allowed" / "new").write_text("")) == "PermissionError"
    assert outcome(allowed, (tmp_path / "file").read_text) == "PermissionError"
    assert outcome(allowed, lambda: (tmp_path / "file").unlink()) == "PermissionError"
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert outcome(allowed, lambda: connect(server.getsockname())) == "PermissionError"


def test_privileges_are_gone() -> None:
    def check() -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if (int(status["CapPrm"], 16), int(status["CapEff"], 16), status["NoNewPrivs"]) != (0, 0, "1"):
            raise OSError(str(status))

    assert outcome([Path("/proc")], check).startswith("done")
