"""An initial RAM disk: files in memory as a cpio archive that Linux unpacks at boot.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst (the "newc" format)."""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or directory. ``mode`` includes the file type, as ``st_mode`` does."""

    name: str
    mode: int
    content: bytes = b""


def directory(name: str) -> Entry:
    """Return a directory with mode 0755."""
    return Entry(name, stat.S_IFDIR | 0o755)


def program(name: str, content: bytes) -> Entry:
    """Return a file that can be executed."""
    return Entry(name, stat.S_IFREG | 0o755, content)


def build_archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive of ``entries`` in their order; a directory must come before what is in it."""
    listed = [*entries, Entry(_TRAILER, 0)]
    return b"".join(_record(number, entry) for number, entry in enumerate(listed, 1))


def _record(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device (2), device of a device file (2), length of the name, checksum
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
