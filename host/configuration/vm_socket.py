"""One socket that the daemon listens on for guests, and what two of them must not share."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from host.configuration.device_options import DeviceOptions, DeviceSettings
from protocol.errors import UsageError
from protocol.process.listening_socket import SocketAccess

Value = TypeVar("Value")

SOCKET_PATH: Final = "--socket-path"
"""The place of a socket that an option of its own names."""

SOCKETS_MAX: Final = 1024
"""Sockets of one daemon: each needs two descriptors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSocket:
    """A socket at ``path``, who may connect to it, and the device that guests find there. ``place`` is where the
    operator has written it, for error messages; it does not count when two of them are compared."""

    path: Path
    device: DeviceOptions
    access: SocketAccess
    place: str = field(compare=False)

    @property
    def option(self) -> str:
        """What an error message about the socket's path begins with."""
        return self.place if self.place == SOCKET_PATH else f"{self.place}.socket-path"


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketDefaults:
    """What holds for each socket that says nothing else: the options of the command line."""

    settings: DeviceSettings
    mode: int | None = None
    group: int | None = None

    def access(self, mode: int | None, group: int | None) -> SocketAccess:
        """Return the access of a socket of which ``mode`` and ``group`` are said, None for nothing."""
        mode = self.mode if mode is None else mode
        group = self.group if group is None else group
        return access(mode, group, None)


def access(mode: int | None, group: int | None, default: int | None) -> SocketAccess:
    """Return the access for these options: with a group alone its members may connect."""
    return SocketAccess(mode if mode is not None else 0o660 if group is not None else default, group)


class Mistakes(UsageError):
    """One or more mistakes, a line for each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))


class Gathered:
    """The mistakes found so far. Reading goes on after one."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def take(self, read: Callable[[], Value], default: Value) -> Value:
        """Return what ``read`` returns, or ``default`` if it raises UsageError, which is a mistake."""
        try:
            return read()
        except UsageError as error:
            self.add(error)
            return default

    def add(self, *mistakes: object) -> None:
        """Take mistakes."""
        self.lines += map(str, mistakes)

    def check(self, where: str = "") -> None:
        """Raise :class:`Mistakes` if there are any, each line beginning with ``where``."""
        if self.lines:
            raise Mistakes([f"{where}{line}" for line in self.lines])


def placed(sockets: Iterable[VmSocket], where: str) -> tuple[VmSocket, ...]:
    """Return the sockets with places that begin with ``where``."""
    return tuple(replace(each, place=f"{where}{each.place}") for each in sockets)


def conflicts(sockets: Sequence[VmSocket], control: Path | None) -> Iterator[str]:
    """Yield a line for each path or name that comes twice, for the path of the control socket, and for too many."""
    paths: dict[Path, str] = {}
    names: dict[str, str] = {}
    for each in sockets:
        path = each.path.absolute()
        if control is not None and path == control.absolute():
            yield f"{each.place}: {each.path} is the control socket's path"
        if (other := paths.setdefault(path, each.place)) is not each.place:
            yield f"{each.place}: {each.path} comes twice, the first is {other}"
        name = each.device.name
        if name and (other := names.setdefault(name, each.place)) is not each.place:
            yield f"{each.place}: the name {name} comes twice, the first is {other}"
    if len(sockets) > SOCKETS_MAX:
        yield f"{len(sockets)} sockets are more than {SOCKETS_MAX}"
