"""Which kernel modules the balloon's driver needs, and in which order they are inserted."""

import re
from collections.abc import Mapping

from protocol.errors import BalloonError

BALLOON = "virtio_balloon"
WANTED = ("virtio_pci", BALLOON)
"""The transport of QEMU's device, and the driver. Their own dependencies are read from the modules."""


def depends(module: bytes) -> tuple[str, ...]:
    """Return the names of the modules that one needs, from ``depends`` in its ``.modinfo`` section."""
    match = re.search(rb"\0depends=([^\0]*)", module)
    names = match[1].decode("ascii", "replace") if match else ""
    return tuple(name for name in names.split(",") if name)


def insertion_order(modules: Mapping[str, bytes]) -> list[str]:
    """Return the names of the modules to insert, each after all that it needs.

    A module that is not in ``modules`` is taken as built into the kernel.

    Raises:
        BalloonError: the balloon's driver is missing, or modules need each other in a circle.
    """
    if BALLOON not in modules:
        raise BalloonError(f"the kernel has no module {BALLOON}")
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise BalloonError(f"modules that need each other: {' '.join((*path, name))}")
        if name in order or name not in modules:
            return
        for other in depends(modules[name]):
            visit(other, (*path, name))
        order.append(name)

    for name in WANTED:
        visit(name, ())
    return order
