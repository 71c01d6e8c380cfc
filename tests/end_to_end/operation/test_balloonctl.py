"""``balloonctl`` against daemons with machines: every command, as text and as JSON."""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from host.balloonctl.__main__ import main
from tests.end_to_end.daemon.test_control import ControlledDaemon
from tests.harness.processes import DEADLINE, ROOT, until
from tests.harness.virtual_machine import DATA_AT, VirtualMachine

PAGE = 4096


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    error: str

    @property
    def value(self) -> Any:
        """What was printed as JSON."""
        return json.loads(self.out)


class Operator:
    """Gives commands to a daemon that has two machines."""

    def __init__(self, daemon: ControlledDaemon, machines: list[VirtualMachine], capsys: Any) -> None:
        self.daemon = daemon
        self.machines = machines
        self._capsys = capsys

    def __call__(self, *words: str) -> Outcome:
        status = main(["--control", str(self.daemon.control_path), *words])
        out, error = self._capsys.readouterr()
        return Outcome(status, out, error)


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Operator]:
    with (
        ControlledDaemon(tmp_path) as daemon,
        VirtualMachine(daemon.socket_path) as one,
        VirtualMachine(daemon.socket_path) as two,
    ):
        one.ram.touch(DATA_AT, 8 * PAGE)
        one.report((DATA_AT, 4 * PAGE))
        yield Operator(daemon, [one, two], capsys)


def test_machines_are_shown(operator: Operator) -> None:
    status = operator("status")
    assert (status.status, status.error) == (0, "")
    title, one, two = status.out.splitlines()
    assert title.split() == [
        "VM",
        "NAME",
        "PID",
        "MEMORY",
        "FREE",
        "HOST",
        "REPORTED",
        "DISCARDED",
        "BALLOON",
        "LAST",
        "HEALTH",
    ]
    assert one.split()[6:9] == ["16K", "16K", "0"]
    assert (one.split()[-1], two.split()[-2:]) == ("ok", ["-", "ok"])
    assert [each["discarded-bytes"] for each in operator("status", "--json").value] == [4 * PAGE, 0]
    shown = operator("show", "1")
    assert "discarded-bytes:       16384 (16K)" in shown.out
    assert operator("--json", "show", "2").value["vm"] == 2


def test_commands_reach_their_machine(operator: Operator) -> None:
    one = operator.machines[0]
    assert operator("inhibit", "1", "--why", "a snapshot") == (0, "", "")
    one.report((DATA_AT + 4 * PAGE, 4 * PAGE))
    assert len(one.ram.pages()) == 4
    doctor = operator("doctor")
    assert doctor.status == 1
    assert "inhibited by the operator: a snapshot" in doctor.out
    assert doctor.out.splitlines()[-1].endswith("healthy so far, no report yet")
    assert operator("allow", "1") == (0, "", "")
    assert operator("doctor", "1", "--json").value[0] == {"label": "1", "vm": 1, "healthy": True, "findings": []}
    assert operator("set", "2", "15M").status == 0
    assert operator("ask", "query-balloon", "vm=2").value == {"actual": 16 << 20}
    assert operator("ask", "query-vms").value[1]["balloon-target"] == 1 << 20
    assert operator("log-level", "error") == (0, "", "")
    for words in (("stats", "1"), ("reclaim", "1"), ("reclaim", "1", "--floor", "1M")):
        refused = operator(*words)
        assert (refused.status, refused.out, refused.error.count("\n")) == (1, "", 1)
        assert refused.error.startswith("balloonctl: vm 1: ")
    assert operator("disconnect", "2") == (0, "", "")
    operator.daemon.settled(2)
    assert len(operator("status").out.splitlines()) == 2


def test_mistakes_are_one_line(operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in (
        (("show",), "name one machine of 2: 1, 2"),
        (("show", "nobody"), "no machine is called 'nobody'; connected: 1, 2"),
        (("ask", "query-nothing"), "query-nothing: unknown command 'query-nothing' (query-commands lists them)"),
        (("--control", str(tmp_path / "none"), "status"), f"{tmp_path}/none: No such file or directory"),
    ):
        done = operator(*words)
        assert (done.status, done.error) == (1, f"balloonctl: {text}\n")
    vms = operator("--control", str(tmp_path / "none"), "status")
    assert [line.split()[0] for line in vms.out.splitlines()] == ["VM", "control:1", "control:2"]
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
    assert main(["--control", str(tmp_path / "silent"), "status"]) == 1
    assert capsys.readouterr().err == f"balloonctl: {tmp_path}/silent: Connection refused\n"
    with pytest.raises(SystemExit) as caught:
        main(["reclaim", "--pace", "fast"])
    assert caught.value.code == 2


def test_broken_ring_is_diagnosed_and_watched(operator: Operator) -> None:
    one = operator.machines[0]
    watching = subprocess.Popen(
        [sys.executable, "-m", "host.balloonctl", "--control", str(operator.daemon.control_path), "watch"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        assert watching.stderr.readline() == f"balloonctl: watching {operator.daemon.control_path}\n"
        one.reporting.ring.avail[1] = 0x7000
        one.reporting.kick()
        line = next(line for line in watching.stdout if "queue stopped" in line)
        assert "vm 1   queue stopped    queue 2, reason " in line
        watching.terminate()
    (found,) = operator("doctor", "1", "--json").value[0]["findings"]
    assert found["cause"] == "ring-broken"
    assert operator("status").out.splitlines()[1].endswith("ring-broken")


WITHOUT_TEXTUAL = (
    "import sys; sys.modules['textual'] = None; from host.balloonctl.__main__ import main; sys.exit(main())"
)


@pytest.mark.parametrize("program", [("-m", "host.balloonctl"), ("-c", WITHOUT_TEXTUAL)], ids=["installed", "plain"])
def test_top_on_a_terminal(operator: Operator, program: tuple[str, str]) -> None:
    """It draws the machines, a key inhibits the selected one, and SIGTERM leaves the terminal as it was."""
    main_side, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, *program, "--control", str(operator.daemon.control_path), "top", "--interval", "0.1"]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as top:
        os.close(terminal)
        seen = ""

        def shows(text: str) -> bool:
            nonlocal seen
            seen += os.read(main_side, 1 << 16).decode(errors="replace")
            return text in seen

        until(lambda: shows("2 machines, 0 not healthy"), "the machines")
        os.write(main_side, b"\x1b[Bi")
        until(lambda: shows("1 not healthy"), "the machine that is inhibited")
        os.write(main_side, b"\x1b[A")
        top.terminate()
        until(lambda: shows("\x1b[?1049l"), "the terminal as it was")
        assert top.wait(DEADLINE) == 0
    os.close(main_side)
    assert [each["inhibited"] is None for each in operator("status", "--json").value] == [True, False]
    assert operator("top").error == "balloonctl: top needs a terminal; status prints the machines once\n"
