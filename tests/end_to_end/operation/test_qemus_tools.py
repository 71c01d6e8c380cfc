"""QEMU's own client and shell (``qemu.qmp``) drive every command of the control socket."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.end_to_end.daemon.test_control import ControlledDaemon
from tests.harness.processes import DEADLINE, ProgramProcess

BALLOON = "/machine/peripheral/vm{vm}"
COMMANDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("query-commands", {}),
    ("query-version", {}),
    ("query-status", {}),
    ("query-vms", {}),
    ("query-balloon", {}),
    ("balloon", {"value": 60_000_000}),
    ("query-guest-statistics", {}),
    ("reclaim", {"method": "inflate"}),
    ("qom-list", {"path": BALLOON}),
    ("qom-get", {"path": BALLOON, "property": "guest-stats"}),
    ("qom-set", {"path": BALLOON, "property": "guest-stats-polling-interval", "value": 5}),
    ("inhibit", {"why": "a-snapshot"}),
    ("allow", {"force": True}),
    ("set-log-level", {"level": "error"}),
    ("disconnect", {}),
)
_OF_THE_DAEMON = ("query-commands", "query-version", "query-status", "query-vms", "set-log-level")


def commands_about(vm: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each command with its arguments."""
    for name, arguments in COMMANDS:
        stated = {key: value.format(vm=vm) if key == "path" else value for key, value in arguments.items()}
        yield name, stated if name in _OF_THE_DAEMON or name.startswith("qom-") else {"vm": vm, **stated}


def words(arguments: dict[str, Any]) -> str:
    """Return the arguments as the shell takes them."""
    return " ".join(f"{key}={'true' if value is True else value}" for key, value in arguments.items())


async def answers_to_client(daemon: ControlledDaemon, vm: int) -> dict[str, Any]:
    """Return the answer to each command, by name."""
    async with daemon.client() as client:
        return {name: await client.execute(name, arguments) for name, arguments in commands_about(vm)}


def test_client_and_shell_drive_every_command(tmp_path: Path) -> None:
    with (
        ControlledDaemon(tmp_path) as daemon,
        ProgramProcess("guest", "--socket-path", str(daemon.socket_path), "--memory", "64M", "--hold") as guest,
    ):
        daemon.events.wait("report", vm=1)
        answers = asyncio.run(answers_to_client(daemon, 1))
        offered = {each["name"] for each in answers["query-commands"]}
        assert offered - {"qmp_capabilities"} == answers.keys()
        assert answers["reclaim"]["complete"]
        assert answers["query-guest-statistics"]["statistics"]["memfree"] > 0
        daemon.events.wait("report", vm=2)  # the guest has connected again, and said so
        lines = [f"{name} {words(arguments)}" for name, arguments in commands_about(2)]
        shell = subprocess.run(
            [sys.executable, "-m", "qemu.qmp.qmp_shell", str(daemon.control_path)],
            input="\n".join([*lines, ""]),
            env={"HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
        told = [line.removeprefix("(QEMU) ") for line in shell.stdout.splitlines() if line.startswith("(QEMU) {")]
        assert [line.partition(":")[0] for line in told] == ['{"return"'] * len(COMMANDS), shell.stdout
        daemon.events.wait("report", vm=3)
        guest.forget_stderr()
