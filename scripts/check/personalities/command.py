"""``balloon-check personalities``: what balloon devices do differently, as a table."""

import argparse
import contextlib
import json
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from host.balloon.personality import PERSONALITIES
from protocol.virtio_balloon import QueueDialect
from scripts.check.machine.vhost_user_device import VhostUserDevice
from scripts.check.personalities.observations import OBSERVATIONS, Subject
from scripts.check.qtest.qtest_device import QtestDevice
from scripts.check.verdict import TargetError
from scripts.child_processes import Child, Children, python_module
from scripts.json_output import open_json

START_SECONDS: Final = 20.0
"""Seconds in which a daemon has to listen, on a busy machine."""

AT_ONCE: Final = 4
"""Personalities that are observed at a time. Most of the time goes into waiting for what does not come."""

_ALL_QUEUES: Final = "statistics=on,free-page-hint=on,page-poison=on"
_LABEL: Final = 30
_COLUMN_MIN: Final = 12

QEMU: Final = "QEMU itself"
"""The column of ``--qemu``."""

Table = dict[str, dict[str, str]]
"""What was seen, by observation and personality."""


def run(arguments: argparse.Namespace) -> int:
    """Observe all personalities. Return the exit status: 0, as there is nothing to judge."""
    if arguments.qemu is not None and shutil.which(arguments.qemu) is None:
        raise TargetError(f"{arguments.qemu}: no such program")
    names = list(dict.fromkeys(arguments.personality or PERSONALITIES))
    with open_json(arguments.json) as stream:
        table = observe_all(names)
        if arguments.qemu is not None:
            with contextlib.closing(QtestDevice(arguments.qemu)) as device:
                subject = Subject(device, QueueDialect.OFFERED)
                for observation, seen in _observe(subject, subject).items():
                    table[observation][QEMU] = seen
        columns = list(names) + [QEMU] * (arguments.qemu is not None)
        if stream is not None:
            rows = [{"observation": observation, "seen": seen} for observation, seen in table.items()]
            sources = {name: PERSONALITIES[name].source for name in names}
            json.dump({"columns": columns, "sources": sources, "rows": rows}, stream, indent=2)
            stream.write("\n")
    if arguments.json != "-":
        for line in table_lines(columns, table, shutil.get_terminal_size((140, 24)).columns):
            print(line)
    return 0


def observe_all(names: Sequence[str]) -> Table:
    """Return what is seen of each of the personalities.

    Raises:
        BalloonError: a daemon does not start.
        TargetError: it does not answer.
    """
    with _daemons(names) as sockets, ThreadPoolExecutor(AT_ONCE) as pool:
        columns = list(pool.map(lambda name: _observe_daemons(name, *sockets[name]), names))
    return {
        observation.name: {name: column[observation.name] for name, column in zip(names, columns, strict=True)}
        for observation in OBSERVATIONS
    }


def _observe_daemons(name: str, *sockets: Path) -> Mapping[str, str]:
    dialect = PERSONALITIES[name].queue_numbers or QueueDialect.NEGOTIATED
    plain, all_queues = (Subject(VhostUserDevice(path), dialect) for path in sockets)
    return _observe(plain, all_queues)


def _observe(plain: Subject, all_queues: Subject) -> Mapping[str, str]:
    # What is seen, by observation.
    return {one.name: one.seen(all_queues if one.all_queues else plain) for one in OBSERVATIONS}


@contextlib.contextmanager
def _daemons(names: Sequence[str]) -> Iterator[dict[str, tuple[Path, Path]]]:
    # Two of each, all started before the first is waited for: as it is, and one that offers all queues and PAGE_POISON.
    with tempfile.TemporaryDirectory(prefix="balloon-check-") as place, Children(Path(place)) as children:
        started: list[Child] = []
        sockets: dict[str, tuple[Path, Path]] = {}
        for name in names:
            for suffix, more in (("", ()), ("-all", ("--features", _ALL_QUEUES))):
                stem = Path(place) / f"{name}{suffix}"
                events = stem.with_suffix(".events")
                options = ("--socket-path", f"{stem}.sock", "--personality", name, "--events", str(events), *more)
                started.append(children.start(name, python_module("host", *options), events.name))
            sockets[name] = Path(place) / f"{name}.sock", Path(place) / f"{name}-all.sock"
        for child in started:
            child.wait_for_event("listening", START_SECONDS)
        yield sockets


def table_lines(names: Sequence[str], table: Table, width: int) -> Iterator[str]:
    """Yield the table, a column for each of ``names``, cells wrapped so that all fits into ``width`` columns of text.

    Where not all columns find room beside each other, some follow below with the labels again.
    """
    at_once = max(1, (width - _LABEL) // (_COLUMN_MIN + 2))
    parts = -(-len(names) // at_once)
    at_once = -(-len(names) // parts)  # about as many in each part
    column = max(_COLUMN_MIN, (width - _LABEL) // at_once - 2)
    for first in range(0, len(names), at_once):
        part = names[first : first + at_once]
        if first:
            yield ""
        yield from _row("", list(part), column)
        yield "-" * (_LABEL + len(part) * (column + 2))
        for observation, seen in table.items():
            yield from _row(observation, [seen[name] for name in part], column)


def _row(label: str, cells: Sequence[str], column: int) -> Iterator[str]:
    wrapped = [textwrap.wrap(label, _LABEL), *(textwrap.wrap(cell, column) or [""] for cell in cells)]
    for number in range(max(map(len, wrapped))):
        first, *others = (cell[number] if number < len(cell) else "" for cell in wrapped)
        yield (first.ljust(_LABEL) + "".join(f"  {cell:{column}}" for cell in others)).rstrip()
