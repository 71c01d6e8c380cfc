"""Waits for the driver's kicks: on the event loop while no worker has the ring, else on the worker."""

import asyncio
import contextlib
import logging
import select
from collections.abc import Callable
from typing import Final

from host.ring.kick_file import KickFile
from protocol.errors import VhostUserError, VirtqueueError

log = logging.getLogger(__name__)

WATCH_RETRY: Final = 1.0
"""Seconds until a kick descriptor is watched again that could not be watched: too many watches, or no memory."""


class KickWatch:
    """The wait for kicks of one queue. ``kick`` is None for a queue that is kicked by messages or polled.

    ``on_kick`` is called on the event loop, with whether the driver has kicked. False: that is still to be read, by a
    worker (:attr:`unread`).

    The event loop watches, and the worker takes, never both at a time.
    """

    def __init__(self, queue: int, kick: KickFile | None, on_kick: Callable[[bool], None]) -> None:
        self.unread = False
        """Whether the worker is to read the descriptor before it looks at the ring."""
        self._queue = queue
        self._kick = kick
        self._on_kick = on_kick
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._later: asyncio.TimerHandle | None = None
        self._is_short = False
        self._drops = False

    def start(self) -> None:
        """Watch on the event loop.

        Raises:
            VhostUserError: that cannot be done. Nothing is watched then.
        """
        kick = self._kick
        if kick is None or kick.gone:
            return
        try:
            self._loop.add_reader(kick.fd, self._look)
        except OSError as error:  # the limit of watches, or no memory
            raise VhostUserError(f"the kick descriptor of queue {self._queue} cannot be waited for") from error
        self._poll.register(kick.fd, select.POLLIN)

    def drop(self) -> bool:
        """Take kicks that came before :meth:`start`: they were for something else. Return whether a worker has to."""
        kick = self._kick
        if kick is None or kick.gone:
            return False
        if kick.held_by_others:
            self.unread = self._drops = True
            return True
        with contextlib.suppress(VirtqueueError):  # found again, and told, by the first look
            kick.take()
        return False

    def take_unread(self) -> bool:
        """On a worker: take what is to be read. Return whether it is a kick that counts.

        Raises:
            VirtqueueError: the descriptor cannot be read.
        """
        self.unread = False
        drops, self._drops = self._drops, False
        return self.take() and not drops

    def resume(self) -> None:
        """Watch on the event loop again, now or as soon as that can be done. No kick is lost meanwhile."""
        try:
            self.start()
        except VhostUserError as error:
            if not self._is_short:  # once for each shortage
                log.warning("%s now; it is tried again", error)
            self._is_short = True
            self.resume_after(WATCH_RETRY, self.resume)
        else:
            self._is_short = False

    def resume_after(self, seconds: float, resume: Callable[[], None]) -> None:
        """Have ``resume`` called in a while, unless :meth:`stop` is called before."""
        self._later = self._loop.call_later(seconds, resume)

    def stop(self) -> None:
        """Watch no more on the event loop."""
        if self._later is not None:
            self._later.cancel()
        if self._kick is not None:
            self._loop.remove_reader(self._kick.fd)

    def _look(self) -> None:
        kick = self._kick
        assert kick is not None
        self.unread = kick.held_by_others
        try:
            taken = not self.unread and kick.take()
        except VirtqueueError:
            taken = False
            self.unread = True  # the worker finds the same error, and tells it
        if taken or self.unread:
            self._on_kick(taken)
        elif kick.gone:
            self.stop()

    def take(self, wait_ms: int = 0) -> bool:
        """On a worker: wait for a kick and take it. Return whether there was one.

        Raises:
            VirtqueueError: the descriptor cannot be read.
        """
        kick = self._kick
        return kick is not None and not kick.gone and bool(self._poll.poll(wait_ms)) and kick.take()
