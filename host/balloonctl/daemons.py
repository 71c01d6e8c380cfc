"""The daemons that a command talks to: named by ``--control``, or found where services put their sockets.

A daemon that does not answer is one line, and the others are asked all the same.
"""

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from host.balloonctl.answers import machines_of
from host.qmp.qmp_client import QmpClient
from protocol.errors import BalloonError, UsageError

CONVENTION: Final = ("/run/vhost-user-balloon", "$XDG_RUNTIME_DIR/vhost-user-balloon")
"""Directories in which control sockets are looked for, and beside them those with a dash and more: of the template unit
each instance has its own."""

SUFFIX: Final = ".ctl"
"""How the name of a control socket ends there."""

VARIABLE: Final = "BALLOON_CONTROL"
"""An environment variable that has paths of control sockets, separated by colons, in place of the directories."""

Entry = Mapping[str, Any]
"""One virtual machine as ``query-vms`` describes it."""


class Machine(NamedTuple):
    """One virtual machine of one daemon. ``label`` is what the user calls it."""

    daemon: "Daemon"
    entry: Entry
    label: str

    @property
    def number(self) -> int:
        """Its number at its daemon."""
        return int(self.entry["vm"])


class Daemon(NamedTuple):
    """One daemon: ``name`` is for display, ``client`` a connection to its control socket at ``path``."""

    name: str
    path: Path
    client: QmpClient

    def ask(self, command: str, /, **arguments: object) -> Any:
        """Carry out a command, with a dash for each ``_`` in the names of its arguments; None is not passed on.

        Raises:
            BalloonError: it cannot be done, or the daemon does not answer.
        """
        members = {name.replace("_", "-"): value for name, value in arguments.items() if value is not None}
        return self.client.command(command, **members)

    def entries(self) -> list[Entry]:
        """Return what it says of its machines. Raises :class:`BalloonError` like :meth:`ask`, and for another shape."""
        return list(machines_of(self.ask("query-vms"), str(self.path)))


def find_sockets(environment: Mapping[str, str]) -> list[Path]:
    """Return the control sockets that are found by convention."""
    if named := environment.get(VARIABLE):
        return [Path(part) for part in named.split(":") if part]
    found: list[Path] = []
    for directory in CONVENTION:
        if directory.startswith("$"):
            runtime = environment.get("XDG_RUNTIME_DIR")
            directory = directory.replace("$XDG_RUNTIME_DIR", runtime) if runtime else ""
        if directory:
            pattern = glob.escape(directory)
            found += map(Path, sorted(glob.glob(f"{pattern}/*{SUFFIX}")) + sorted(glob.glob(f"{pattern}-*/*{SUFFIX}")))
    return found


class Daemons:
    """Connections to all daemons that answer; as a context manager it closes them. ``failures`` has a line for each
    daemon that does not answer."""

    def __init__(self, paths: Sequence[Path], *, answer_seconds: float | None = 30.0) -> None:
        """Connect to the sockets at ``paths``, or to those that are found.

        Raises:
            UsageError: there is no path, and none is found.
            BalloonError: the only daemon does not answer.
        """
        self.failures: list[str] = []
        self.daemons: list[Daemon] = []
        self._answer_seconds = answer_seconds
        self._lost: set[Path] = set()
        paths = list(dict.fromkeys(paths)) or find_sockets(os.environ)
        if not paths:
            looked = " and ".join(f"{directory}/*{SUFFIX}" for directory in CONVENTION)
            raise UsageError(f"no control socket: name one with --control PATH (looked for {looked})")
        self._names = short_names(paths)
        for path in paths:
            try:
                self._connect(path)
            except BalloonError as error:
                if len(paths) == 1:
                    raise
                self._lost.add(path)
                self.failures.append(str(error))

    def _connect(self, path: Path) -> None:
        self.daemons.append(Daemon(self._names[path], path, QmpClient(path, answer_seconds=self._answer_seconds)))
        order = list(self._names)
        self.daemons.sort(key=lambda daemon: order.index(daemon.path))

    def reconnect(self) -> None:
        """Connect again to each daemon that has not answered: it may have been started anew. One that still does not
        answer is added to ``failures``."""
        for path in sorted(self._lost):
            for daemon in [daemon for daemon in self.daemons if daemon.path == path]:
                daemon.client.close()
                self.daemons.remove(daemon)
            try:
                self._connect(path)
                self._lost.discard(path)
            except BalloonError as error:
                self.failures.append(str(error))

    def machines(self) -> Iterator[Machine]:
        """Yield the virtual machines of all daemons. One that fails meanwhile is added to ``failures``."""
        for daemon in self.daemons:
            try:
                entries = daemon.entries()
            except BalloonError as error:
                self._lost.add(daemon.path)
                self.failures.append(str(error))
                continue
            for entry in entries:
                if "name" not in entry:
                    self.failures.append(f"vm {entry['vm']}: {entry['broken']}")
                    continue
                yield Machine(daemon, entry, self._label(daemon, entry))

    def _label(self, daemon: Daemon, entry: Entry) -> str:
        number = str(entry["vm"])
        return number if len(self._names) == 1 else f"{daemon.name}:{number}"

    def machine(self, name: str | None) -> Machine:
        """Return the machine that ``name`` means: a number, a name, or either after the daemon's name and a colon. None
        means the only one.

        Raises:
            BalloonError: there is no such machine, or more than one.
        """
        machines = list(self.machines())
        found = [machine for machine in machines if name is None or _is_called(machine, name)]
        if len(found) == 1:
            return found[0]
        labels = ", ".join(machine.label for machine in (found or machines)[:8])
        failed = f" ({'; '.join(self.failures)})" if self.failures else ""
        if not machines:
            raise BalloonError(f"no machine is connected{failed}")
        if name is None:
            raise BalloonError(f"name one machine of {len(machines)}: {labels}{failed}")
        if found:
            raise BalloonError(f"{name!r} may be {labels}: write the daemon's name and a colon before the number")
        raise BalloonError(f"no machine is called {name!r}; connected: {labels}{failed}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for daemon in self.daemons:
            daemon.client.close()


def _is_called(machine: Machine, name: str) -> bool:
    number, called = str(machine.entry["vm"]), machine.entry["name"]
    daemon = machine.daemon.name
    return name in (number, called, f"{daemon}:{number}", f"{daemon}:{called}")


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return a short name for each socket: that of its file where only one has it, otherwise its whole path."""
    stems = [path.stem for path in paths]
    return {path: stem if stems.count(stem) == 1 else str(path) for path, stem in zip(paths, stems, strict=True)}
