"""Keeps the inhibition of one virtual machine up to date: by the operator's word, and by looks at its process.

There is no event for what is looked for, and a timer would wake the daemon for each idle guest. So a look is made when
it counts: before a ring is served, while rings are served without a pause, and when a client asks.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

from host.inhibition.front_end_look import look_at
from host.inhibition.inhibition import Inhibition, InhibitionState, Sign
from protocol.errors import VhostUserError

LOOK_INTERVAL: Final = 5.0
"""Seconds for which a look counts: a process may be stopped, or a device plugged in, at any time."""

FILES_AGE: Final = 10.0
"""Age in seconds up to which what a process's descriptors showed counts; after a new memory table :data:`NEW_AGE`."""

NEW_AGE: Final = 1.0

LOOK_PATIENCE: Final = 0.5
"""Seconds that a client waits for a look. What the one before has found counts after that."""

TELL_PATIENCE: Final = 1.0
"""Seconds that a worker waits for the event loop to take in what it has found."""

P = ParamSpec("P")
T = TypeVar("T")

Look = Callable[[Iterable[int], Callable[[list[int]], int | None]], "asyncio.Future[int | None]"]
"""Calls a function on a helper of the front-end's process: see :meth:`host.peers.helpers.Helpers.look`."""


class DiscardGate:
    """Tells ``on_change`` what inhibits discards, whenever that changes. On the event loop, but for :meth:`before`."""

    def __init__(self, look: Look, on_change: Callable[[Inhibition | None], None]) -> None:
        self._look = look
        self._on_change = on_change
        self._state = InhibitionState()
        self._told: Inhibition | None = None
        self._looking: asyncio.Future[int | None] | None = None
        self._process = (0, 0)
        self._looked_at = -math.inf
        self._closed = False
        self._loop = asyncio.get_running_loop()

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
        """Look from now on at process ``pid``, which has given ``memory_bytes`` to its guest."""
        self._process = (pid, memory_bytes)
        self._looked_at = -math.inf
        self._begin_look(NEW_AGE)

    async def look(self) -> None:
        """Look at the process if the last look does not count any more."""
        if self._is_old(time.monotonic()):
            self._begin_look(FILES_AGE)
            if self._looking is not None:
                await asyncio.wait([self._looking], timeout=LOOK_PATIENCE)

    def look_again(self) -> None:
        """Look now, if a process is watched: there is something new about it."""
        if self._process != (0, 0):
            self._begin_look(FILES_AGE)

    def chain_served(self, now: float) -> None:
        """Take note that a ring was served at ``now``: it may go on without a pause."""
        if self._is_old(now):
            self._begin_look(FILES_AGE)

    def before(self, workers: Executor) -> Executor:
        """Return ``workers`` that look at the process before they do anything, if the last look does not count."""
        return _LookingWorkers(workers, self._look_here)

    def _is_old(self, now: float) -> bool:
        return now - self._looked_at >= LOOK_INTERVAL

    def _begin_look(self, max_age: float) -> None:
        if self._looking is not None:  # the helpers are held up
            return
        begin, process = time.monotonic(), self._process
        pid, memory_bytes = process
        try:
            self._looking = self._look((), lambda _fds: int(look_at(pid, memory_bytes, max_age=max_age)))
        except VhostUserError:  # at the limit of threads
            return
        self._looking.add_done_callback(partial(self._have_looked, begin, process))

    def _have_looked(self, begin: float, process: tuple[int, int], looking: "asyncio.Future[int | None]") -> None:
        self._looking = None
        if process != self._process and not self._closed:  # it has another memory table by now
            self._begin_look(NEW_AGE)
        elif not looking.cancelled() and looking.exception() is None:
            self._found(begin, Sign(looking.result() or 0))

    def _found(self, begin: float, signs: Sign) -> None:
        if not self._closed and begin > self._looked_at:
            self._looked_at = begin
            self._state.found(signs)
            self._tell()

    def _look_here(self) -> None:
        # On a worker. What is in /proc does not block, and a turn of a ring may take longer.
        begin = time.monotonic()
        if not self._is_old(begin) or self._closed:
            return
        pid, memory_bytes = self._process
        signs = look_at(pid, memory_bytes, max_age=FILES_AGE)
        if signs == self._state.signs:
            self._looked_at = begin
            return
        is_known = threading.Event()

        def take() -> None:
            try:
                self._found(begin, signs)
            finally:
                is_known.set()

        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(take)
            is_known.wait(TELL_PATIENCE)

    def _tell(self) -> None:
        current = self._state.current
        if current != self._told:
            self._told = current
            self._on_change(current)

    def close(self) -> None:
        """Look no more."""
        self._closed = True


class _LookingWorkers(Executor):
    def __init__(self, workers: Executor, look: Callable[[], None]) -> None:
        self._workers = workers
        self._look = look

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        def act() -> T:
            self._look()
            return fn(*args, **kwargs)

        return self._workers.submit(act)
