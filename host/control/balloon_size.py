"""The size of one virtual machine's balloon: what it should be, and what the driver says it is."""

import asyncio
from collections.abc import Callable
from typing import Final

from host.control.controlled_machine import ControlledMachine
from host.control.latest_value import LatestValue
from protocol.errors import BalloonError
from protocol.virtio_balloon import NUM_PAGES_MAX, PFN_SHIFT, BalloonConfig

BALLOON_INTERVAL: Final = 0.05
"""Least seconds between two ``balloon`` events of one virtual machine: a driver can write ``actual`` all the time."""


class BalloonSize:
    """Sets ``num_pages`` in the configuration space and follows ``actual``. Sizes are in 4096-byte pages.

    Each change is an event: ``emit`` writes one.
    """

    def __init__(self, machine: ControlledMachine, emit: Callable[..., None]) -> None:
        self._machine = machine
        self._emit = emit
        self._target_pages = machine.balloon.config.num_pages
        self._actual = machine.balloon.config.actual
        self._events = LatestValue(BALLOON_INTERVAL, self._emit_size)

    @property
    def target_pages(self) -> int:
        """The size that was asked for, not the one to which a reclaim inflates the balloon for a while."""
        return self._target_pages

    def set_target(self, num_pages: int) -> None:
        """Ask for a balloon of ``num_pages``, and notify the driver if there is one.

        Raises:
            BalloonError: no balloon can be that large.
        """
        if not 0 <= num_pages <= NUM_PAGES_MAX:
            raise BalloonError(f"a balloon has 0 to {NUM_PAGES_MAX} pages, not {num_pages}")
        self._target_pages = num_pages
        self.inflate_to(num_pages)

    def inflate_to(self, num_pages: int) -> None:
        """Ask for ``num_pages`` for a while; :meth:`restore_target` asks for the target again."""
        changed = num_pages != self._machine.balloon.config.num_pages
        self._machine.change_config(num_pages=num_pages)
        if changed:
            self._emit("target", bytes=num_pages << PFN_SHIFT)

    def restore_target(self) -> None:
        """Ask for the target, after :meth:`inflate_to`."""
        self.inflate_to(self._target_pages)

    def resume(self, target_pages: int, actual: int) -> None:
        """Continue with the sizes that another daemon has saved; the configuration space has them already."""
        self._target_pages, self._actual = target_pages, actual

    def config_written(self) -> bool:
        """Take note that the driver wrote to the configuration space. Return whether ``actual`` has changed."""
        config = self._machine.balloon.config
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
