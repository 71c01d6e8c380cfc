"""``balloon-check proxy``: pass messages between front-ends and a back-end, with the faults of a script."""

import argparse
import asyncio
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from protocol.errors import BalloonError, UsageError
from protocol.process.events import EventLog, open_event_log
from protocol.process.listening_socket import ListeningSocket
from scripts.check.faults.fault_plan import FaultPlan
from scripts.check.faults.fault_script import FaultScript
from scripts.check.faults.proxy import Proxy
from scripts.check.faults.script_text import parse_script
from scripts.check.listing import print_listing
from scripts.check.names import nearest
from scripts.check.recording.check_recording import open_record
from scripts.check.verdict import TargetError

SCRIPTS: Final = Path(__file__).parent / "scripts"
"""The scripts that come with the program."""

_SUFFIX: Final = ".fault"
_SCRIPT_MAX: Final = 1 << 20


def run(arguments: argparse.Namespace) -> int:
    """Run the proxy. Return the exit status."""
    if arguments.list:
        print_listing(f"{path.stem}\n    {_summary(path)}" for path in shipped_scripts())
        return 0
    for option in ("listen", "connect"):
        if getattr(arguments, option) is None:
            raise UsageError(f"--{option} is needed")
    if arguments.listen == arguments.connect:
        raise UsageError(f"--connect {arguments.connect}: that is where the proxy listens")
    script = FaultScript() if arguments.script is None else read_script(arguments.script)
    _check_target(arguments.connect)
    with (
        open_record(arguments.record, "balloon-check proxy") as recording,
        closing(_events(arguments.events)) as events,
        closing(ListeningSocket(arguments.listen, "--listen")) as listener,
    ):
        record = None if recording is None else recording.write
        proxy = Proxy(listener, arguments.connect, FaultPlan(script, arguments.seed), events, record)
        asyncio.run(proxy.run())
    return 0


def shipped_scripts() -> list[Path]:
    """Return the scripts that come with the program."""
    return sorted(SCRIPTS.glob(f"*{_SUFFIX}"))


def read_script(path: Path) -> FaultScript:
    """Return the script in the file at ``path``, or the one that comes with the program under this name.

    Raises:
        UsageError: the script has a mistake, is not text, or cannot be read; or there is none.
    """
    shipped = {each.stem: each for each in shipped_scripts()}
    name = str(path)
    file = shipped[name] if name in shipped and not path.exists() else path
    try:
        with file.open("rb") as opened:
            data = opened.read(_SCRIPT_MAX + 1)
        if len(data) > _SCRIPT_MAX:
            raise UsageError(f"--script {path}: longer than {_SCRIPT_MAX} bytes")
        return parse_script(data.decode("utf-8"), name)
    except OSError as error:
        raise UsageError(f"--script {path}: {error.strerror}{nearest([name], shipped)}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--script {path}: byte {error.start} is not UTF-8 text") from error


def _events(path: str | None) -> EventLog:
    try:
        return open_event_log(path, time.monotonic)
    except BalloonError as error:
        raise UsageError(str(error)) from error


def _summary(path: Path) -> str:
    # The beginning of the comment that each of them has.
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    return comment.partition(": ")[0].partition(". ")[0].removesuffix(".")


def _check_target(path: Path) -> None:
    # Not by a connection: a back-end may serve one and leave.
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise TargetError(f"--connect {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise TargetError(f"--connect {path}: not a socket")
