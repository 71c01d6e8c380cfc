"""What a guest is called in answers and metrics: after its process, its cgroup, or the socket that it connected to."""

import re
from pathlib import Path
from typing import Final

CHOICES: Final = ("pid", "cgroup", "socket")

_ESCAPED: Final = re.compile(rb"\\x([0-9a-f]{2})")
_UNIT: Final = re.compile(r"\.(scope|service|slice|libvirt-qemu)$")
_INNER: Final = frozenset({"emulator", "libvirt", "vcpu0", "payload"})
"""Cgroups inside that of a machine, which libvirt and systemd make."""


def guest_name(choice: str, pid: int, socket_name: str) -> str:
    """Return the name of the guest whose front-end is process ``pid`` and is connected to the socket called
    ``socket_name``, "" if it cannot be known. The guest's owner chose it; ``?`` stands for what a terminal would obey,
    and for what is no text."""
    return "".join(character if character.isprintable() else "?" for character in _raw_name(choice, pid, socket_name))


def _raw_name(choice: str, pid: int, socket_name: str) -> str:
    if choice == "socket":
        return socket_name
    try:
        if choice == "cgroup":
            return name_of_cgroup(Path(f"/proc/{pid}/cgroup").read_text(errors="replace"))
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:  # it has gone, or is of another pid namespace
        return ""


def name_of_cgroup(text: str) -> str:
    """Return the name of the machine in the content of /proc/PID/cgroup: of version 2, else of the memory controller.

    A cgroup's name may have any character but a slash and ``\\n`` (cgroup_mkdir() in Linux).

    systemd writes ``machine-qemu\\x2d1\\x2dweb.scope`` for the machine ``qemu-1-web`` (systemd.unit(5), escaping).
    """
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in text.split("\n") if line)}
    of_memory = [path for name, path in paths.items() if "memory" in name.split(",")]
    path = paths.get("", "").strip("/") or "".join(of_memory[:1])
    parts = [part for part in path.split("/") if part]
    while len(parts) > 1 and parts[-1] in _INNER:
        parts.pop()
    if not parts:
        return ""
    escaped = _UNIT.sub("", parts[-1]).encode(errors="replace")
    plain = _ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), escaped)
    return plain.decode(errors="replace").removeprefix("machine-")
