"""Keeps the inhibition of one virtual machine up to date: by the operator's word, and by looks at its process."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from host.inhibition.front_end_look import look_at
from host.inhibition.inhibition import Inhibition, InhibitionState, Sign
from protocol.errors import VhostUserError

LOOK_INTERVAL: Final = 5.0
"""Seconds between two looks: a process may be stopped, or a device plugged in, at any time."""

FILES_AGE: Final = 10.0
"""Age in seconds up to which what a process's descriptors showed counts; after a new memory table :data:`NEW_AGE`."""

NEW_AGE: Final = 1.0

Look = Callable[[Iterable[int], Callable[[list[int]], int | None]], "asyncio.Future[int | None]"]
"""Calls a function on a helper of the front-end's process: see :meth:`host.peers.helpers.Helpers.look`."""


class DiscardGate:
    """Tells ``on_change`` what inhibits discards, whenever that changes. On the event loop."""

    def __init__(self, look: Look, on_change: Callable[[Inhibition | None], None]) -> None:
        self._look = look
        self._on_change = on_change
        self._state = InhibitionState()
        self._told: Inhibition | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Future[int | None] | None = None
        self._process = (0, 0)

    @property
    def current(self) -> Inhibition | None:
        """What inhibits discards at present, None if nothing does."""
        return self._state.current

    @property
    def signs(self) -> Sign:
        """What the last look at the process found."""
        return self._state.signs

    def inhibit(self, why: str) -> None:
        """Take the operator's word that nothing may be discarded."""
        self._state.inhibit(why)
        self._tell()

    def allow(self, *, force: bool) -> None:
        """Take it back; see :meth:`InhibitionState.allow`."""
        self._state.allow(force=force)
        self._tell()

    def write_down(self) -> dict[str, Any]:
        """Return what inhibits discards, for another process."""
        return self._state.write_down()

    def resume(self, written: Mapping[str, Any]) -> None:
        """Go on from what another process has written down, until the next look."""
        self._state.resume(written)
        self._tell()

    def watch(self, pid: int, memory_bytes: int) -> None:
        """Look at process ``pid``, which has given ``memory_bytes`` to its guest, now and from time to time."""
        self._process = (pid, memory_bytes)
        self._look_now(NEW_AGE)

    def look_again(self) -> None:
        """Look now, if a process is watched: there is something new about it."""
        if self._timer is not None:
            self._look_now()

    def _look_now(self, max_age: float = FILES_AGE) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LOOK_INTERVAL, self._look_now)
        if self._looking is not None:  # the helpers are held up
            return
        pid, memory_bytes = self._process
        try:
            self._looking = self._look((), lambda _fds: int(look_at(pid, memory_bytes, max_age=max_age)))
        except VhostUserError:  # at the limit of threads
            return
        self._looking.add_done_callback(self._looked)

    def _looked(self, looking: "asyncio.Future[int | None]") -> None:
        self._looking = None
        if self._timer is None or looking.cancelled() or looking.exception() is not None:
            return
        self._state.found(Sign(looking.result() or 0))
        self._tell()

    def _tell(self) -> None:
        current = self._state.current
        if current != self._told:
            self._told = current
            self._on_change(current)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
