"""``--config``: the sockets of a TOML file, each a ``[[vm]]``."""

from pathlib import Path
from typing import Final

from host.configuration.vm_socket import Gathered, Mistakes, SocketDefaults, VmSocket, placed
from host.configuration.vm_table import read_vm
from protocol.configuration.toml_table import Table
from protocol.configuration.toml_text import parse_toml
from protocol.errors import BalloonError

FILE_MAX: Final = 1 << 20
"""Most bytes of a file: as many sockets as a daemon may have take a quarter of that. All guests wait while it is read
again."""


def load_sockets(path: Path, defaults: SocketDefaults) -> tuple[VmSocket, ...]:
    """Return the sockets of the file at ``path``, which may have none.

    Raises:
        Mistakes: what is wrong in it, each line with the file and the place.
        BalloonError: it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise BalloonError(f"--config {path}: not an ordinary file")
        if path.exists() and path.stat().st_size > FILE_MAX:
            raise BalloonError(f"--config {path}: larger than {FILE_MAX >> 20} MiB")
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise Mistakes([f"{path}: not a text file in UTF-8"]) from error
    except OSError as error:
        raise BalloonError(f"--config {path}: {error.strerror}") from error
    mistakes = Gathered()
    none: tuple[VmSocket, ...] = ()
    sockets = mistakes.take(lambda: _parse(text, defaults, mistakes), none)
    mistakes.check(f"{path}: ")
    return placed(sockets, f"{path}: ")


def _parse(text: str, defaults: SocketDefaults, mistakes: Gathered) -> tuple[VmSocket, ...]:
    file = Table(parse_toml(text))
    none: tuple[Table, ...] = ()
    tables = mistakes.take(lambda: file.tables("vm"), none)
    sockets = tuple(read_vm(table, defaults, mistakes) for table in tables)
    mistakes.add(*file.unknown())
    return sockets
