"""The kernel's command line: memory, root, the device and the consoles."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.errors import UsageError
from protocol.units import MIB, format_size, parse_size

MINIMUM_MEMORY = 64 * MIB
"""Below this a 6.1 kernel with its modules boots but has nothing left to give back. Bytes."""
VIRTIO_ID_BALLOON = 5

_OWN_PARAMETERS = frozenset(
    {"mem", "root", "rootfstype", "rootflags", "init", "rdinit", "uml_dir", "umid", "console", "con", "ssl"}
    | {f"con{number}" for number in range(6)}
)
"""Parameters that the launcher itself depends on."""


def parse_memory(text: str) -> int:
    """Return the guest's memory in bytes.

    Raises:
        UsageError: not a size, not whole MiB, or less than :data:`MINIMUM_MEMORY`.
    """
    size = parse_size(text)
    if size % MIB:
        raise UsageError(f"--memory {text}: the kernel takes whole MiB")
    if size < MINIMUM_MEMORY:
        raise UsageError(f"--memory {text}: a guest needs at least {format_size(MINIMUM_MEMORY)}")
    return size


@dataclass(frozen=True, slots=True, kw_only=True)
class Consoles:
    """File descriptors of the kernel process for its consoles. ``None``: that console is not there."""

    terminal: int | None = None
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    control_in: int
    control_out: int


def parse_parameters(text: str) -> tuple[str, ...]:
    """Return the words of ``text``, parameters to be added to the kernel's command line.

    Raises:
        UsageError: one of them is a parameter that the launcher sets, or ``--``, which ends the kernel's parameters.
    """
    words = tuple(text.split())
    for word in words:
        name = word.partition("=")[0]
        if name == "--":
            raise UsageError("-- would end the kernel's parameters")
        if name in _OWN_PARAMETERS:
            raise UsageError(f"{name} cannot be given: the launcher sets it")
    return words


def kernel_arguments(
    *,
    memory: int,
    control_root: str,
    runtime: str,
    socket_path: str,
    consoles: Consoles,
    parameters: Sequence[str] = (),
) -> tuple[str, ...]:
    """Return the kernel's command line.

    ``control_root``, ``runtime`` (for the kernel's pid file) and ``socket_path`` must be plain paths: the kernel splits
    its command line at blanks, hostfs its options at commas, virtio_uml its device at colons. ``parameters`` come last:
    of a parameter that is given twice the kernel takes the last.

    Raises:
        UsageError: one of those paths has such a character.
    """
    for path in (control_root, runtime, socket_path):
        if not is_plain_path(path):
            raise UsageError(f"{path!r}: the kernel's command line cannot carry this path")
    arguments = [
        f"mem={memory // MIB}M",
        "root=/dev/root",
        "rootfstype=hostfs",
        f"rootflags={control_root}",
        "rw",
        "init=/init",
        f"uml_dir={runtime}",
        "umid=guest",
        f"virtio_uml.device={socket_path}:{VIRTIO_ID_BALLOON}",
        "noreboot",  # end: a kernel that boots again would run the command again
        "ignore_loglevel",
        "printk.time=1",
        "console=tty0",
        "con=null",
        "ssl=null",
        "con0=null,fd:1",
        f"con5=fd:{consoles.control_in},fd:{consoles.control_out}",
    ]
    if consoles.terminal is not None:
        arguments.append(f"con1=fd:{consoles.terminal}")
    if consoles.stdin is not None:
        arguments.append(f"con2=fd:{consoles.stdin},null")
    if consoles.stdout is not None:
        arguments.append(f"con3=null,fd:{consoles.stdout}")
    if consoles.stderr is not None:
        arguments.append(f"con4=null,fd:{consoles.stderr}")
    return (*arguments, *parameters)


def is_plain_path(path: str) -> bool:
    """Tell whether ``path`` is absolute and has only characters that every reader of the command line leaves alone."""
    return re.fullmatch(r"/[A-Za-z0-9_./+-]*", path) is not None
