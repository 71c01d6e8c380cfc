"""How much memory the host holds for the files of a guest's memory.

A memory file answers ``fstat`` at once. Another file that a front-end handed over may block the thread that calls it,
for as long as its owner decides. So a helper of the front-end's process examines such files, one look at a time for
each virtual machine, and all who ask meanwhile wait for that one, each for half a second.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from protocol.errors import VhostUserError

BLOCK_BYTES: Final = 512
"""Bytes of one block of ``st_blocks`` (stat(2))."""

PATIENCE: Final = 0.5
"""Time limit for an answer, in seconds."""

Look = Callable[[Iterable[int], Callable[[list[int]], int | None]], "asyncio.Future[int | None]"]
"""Calls a function with descriptors on a helper, and leaves them open until it has returned: see
:meth:`host.peers.helpers.Helpers.look`."""


async def together(answers: Iterable[Awaitable[int | None]]) -> list[int | None]:
    """Return all ``answers``, waited for at the same time."""
    asked = list(answers)
    return list(await asyncio.gather(*asked)) if asked else []


class Refaults:
    """Memory that came back: that the host holds again after it had been given back, in bytes.

    It is seen from one measurement to the next, so what is given back and touched again in between is missed: the sum
    is a lower bound. Memory that grows beyond all that was ever held is touched for the first time, and does not count.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._last: int | None = None
        self._given_back = 0

    def observe(self, backed_bytes: int) -> None:
        """Take the next measurement."""
        grown = 0 if self._last is None else backed_bytes - self._last
        self._last = backed_bytes
        returned = min(max(grown, 0), self._given_back)
        self.bytes += returned
        self._given_back += max(-grown, 0) - returned

    def write_down(self) -> list[int | None]:
        """Return all of it, for another process of the same machine."""
        return [self.bytes, self._last, self._given_back]

    def resume(self, written: Sequence[int | None]) -> None:
        """Go on from what another process has written down."""
        count, self._last, given_back = written
        self.bytes, self._given_back = count or 0, given_back or 0


class BackedMemory:
    """Looks at the files of one virtual machine, by ``look``. On the event loop."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._under_way: asyncio.Future[int | None] | None = None
        self.refaults = Refaults()

    async def measure(self, fds: Iterable[int], *, at_once: bool = False) -> int | None:
        """Return the bytes allocated to all files of ``fds``, each file once; or what a look that is under way finds.
        ``at_once`` says that no file makes its reader wait.

        None after the time limit, if a file cannot be examined, and at the limit of threads.
        """
        if at_once:
            return self._observed(allocated_bytes(fds))
        if self._under_way is None or self._under_way.done():
            try:
                self._under_way = self._look(fds, allocated_bytes)
            except VhostUserError:
                return None
        try:
            async with asyncio.timeout(PATIENCE):
                backed = await asyncio.shield(self._under_way)
        except TimeoutError:
            return None
        return self._observed(backed)

    def _observed(self, backed: int | None) -> int | None:
        if backed is not None:
            self.refaults.observe(backed)
        return backed


def allocated_bytes(fds: Iterable[int]) -> int | None:
    """Return the bytes allocated to all files of ``fds``, each file once. None if one cannot be examined."""
    sizes: dict[tuple[int, int], int] = {}
    try:
        for fd in fds:
            status = os.fstat(fd)
            sizes[status.st_dev, status.st_ino] = status.st_blocks * BLOCK_BYTES
    except OSError:
        return None
    return sum(sizes.values())
