"""The size of one virtual machine's balloon: the target, and the driver's ``actual``."""

import asyncio
from collections.abc import Callable
from typing import Final

from host.control.connection_interface import ConnectionInterface
from host.control.guest_ram import GuestRam
from host.control.latest_value import LatestValue
from protocol.balloon_config import BalloonConfig
from protocol.errors import BalloonError
from protocol.virtio import has_feature
from protocol.virtio_balloon import NUM_PAGES_MAX, PFN_SHIFT, BalloonFeature

BALLOON_INTERVAL: Final = 0.05
"""Least seconds between two ``balloon`` events of one virtual machine: a driver can write ``actual`` all the time."""


class BalloonSize:
    """Sets ``num_pages`` in the configuration space and follows ``actual``. Sizes are in 4096-byte pages.

    Each change is an event: ``emit`` writes one.
    """

    def __init__(self, connection: ConnectionInterface, emit: Callable[..., None]) -> None:
        self._connection = connection
        self._emit = emit
        self._target_pages = self._asked_pages = connection.balloon.config.num_pages
        self._reclaims = False
        self._actual = connection.balloon.config.actual
        self._events = LatestValue(BALLOON_INTERVAL, self._emit_size)
        self.ram = GuestRam(table=connection.memory_bytes)
        self.refresh()

    @property
    def target_pages(self) -> int:
        """The size that was asked for, not the one to which a reclaim inflates the balloon for a while, nor the one to
        which the guest's memory bounds it."""
        return self._target_pages

    def set_target(self, num_pages: int) -> None:
        """Ask for a balloon of ``num_pages``, and notify the driver if there is one.

        Raises:
            BalloonError: no balloon can be that large, or it would leave the guest less than the reserve.
        """
        if not 0 <= num_pages <= NUM_PAGES_MAX:
            raise BalloonError(f"a balloon has 0 to {NUM_PAGES_MAX} pages, not {num_pages}")
        if self.ram.bytes and num_pages > self.ram.most_pages:
            raise BalloonError(
                f"a balloon of {num_pages << PFN_SHIFT} bytes leaves a guest of {self.ram.bytes} bytes too little: "
                f"{self.ram.most_pages << PFN_SHIFT} is the most"
            )
        self._target_pages = num_pages
        self.restore_target()

    def inflate_to(self, num_pages: int) -> None:
        """Ask for ``num_pages`` of the guest's free memory for a while; :meth:`restore_target` asks for the target
        again."""
        self._asked_pages, self._reclaims = num_pages, True
        self._show()

    def restore_target(self) -> None:
        """Ask for the target, after :meth:`inflate_to`."""
        self._asked_pages, self._reclaims = self._target_pages, False
        self._show()

    def refresh(self) -> None:
        """Bound the size again by the guest's memory, so that it is never asked for more than it can give.

        The size is 0 while the guest's memory is unknown. A driver is notified only if the size has changed.
        """
        self.ram.table = self._connection.memory_bytes
        if self._bounded_pages != self._connection.balloon.config.num_pages:
            self._show()

    def statistics_received(self, total: int | None) -> None:
        """Take what the guest says of its total memory (MEMTOT), None if nothing.

        Without DEFLATE_ON_OOM Linux does not count the pages in the balloon (balloon_page_enqueue in
        drivers/virtio/virtio_balloon.c, adjust_managed_page_count).
        """
        balloon = self._connection.balloon
        if total is not None and not has_feature(balloon.features, BalloonFeature.DEFLATE_ON_OOM):
            total += balloon.config.actual << PFN_SHIFT
        self.ram.total = total
        self.refresh()

    @property
    def _bounded_pages(self) -> int:
        # A reclaim keeps a reserve of its own, a part of the guest's free memory.
        return min(self._asked_pages, self.ram.pages if self._reclaims else self.ram.most_pages)

    def _show(self) -> None:
        num_pages = self._bounded_pages
        changed = num_pages != self._connection.balloon.config.num_pages
        self._connection.change_config(num_pages=num_pages)
        if changed:
            self._emit("target", bytes=num_pages << PFN_SHIFT)

    def resume(self, target_pages: int, actual: int) -> None:
        """Continue with the sizes that another daemon has saved; the configuration space has them already."""
        self._target_pages = self._asked_pages = target_pages
        self._actual, self._reclaims = actual, False
        self.ram.total = None
        self.refresh()

    def config_written(self) -> bool:
        """Take note that the driver wrote to the configuration space. Return whether ``actual`` has changed."""
        config = self._connection.balloon.config
        if config.actual == self._actual:
            return False
        self._actual = config.actual
        self._events.change((asyncio.get_running_loop().time(), config))
        return True

    def _emit_size(self, written: tuple[float, BalloonConfig]) -> None:
        when, config = written
        sizes = {"actual_bytes": config.actual << PFN_SHIFT, "target_bytes": config.num_pages << PFN_SHIFT}
        self._emit("balloon", t=round(when, 6), **sizes)

    def close(self) -> None:
        """Write the event that is due, if one is."""
        self._events.flush()
        self._events.close()
