"""How much memory the host holds for the files of a guest's memory.

A file that a front-end handed over may block the thread that calls ``fstat`` on it, for as long as its owner decides.
So a separate thread examines duplicates of the descriptors, one thread at a time for each virtual machine, and the
answer is awaited for half a second.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Iterable
from typing import Final

BLOCK_BYTES: Final = 512
"""Bytes of one block of ``st_blocks`` (stat(2))."""

PATIENCE: Final = 0.5
"""Time limit for an answer, in seconds."""


async def together(answers: Iterable[Awaitable[int | None]]) -> list[int | None]:
    """Return all ``answers``, waited for at the same time."""
    asked = list(answers)
    return list(await asyncio.gather(*asked)) if asked else []


class BackedMemory:
    """Looks at the files of one virtual machine."""

    def __init__(self) -> None:
        self._looks = False

    async def measure(self, fds: Iterable[int]) -> int | None:
        """Return the bytes allocated to all files of ``fds``, each file once. None after the time limit."""
        if self._looks:
            return None
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(os.dup(fd))
            answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
            thread = threading.Thread(target=self._look, args=(copies, answer), name="backed", daemon=True)
            self._looks = True
            thread.start()
        except (OSError, RuntimeError):  # the limit of descriptors or of threads
            self._looks = False
            for fd in copies:
                os.close(fd)
            return None
        try:
            async with asyncio.timeout(PATIENCE):
                return await answer
        except TimeoutError:
            return None

    def _look(self, fds: list[int], answer: "asyncio.Future[int | None]") -> None:
        sizes: dict[tuple[int, int], int] | None = {}
        for fd in fds:
            try:
                status = os.fstat(fd)
                if sizes is not None:
                    sizes[status.st_dev, status.st_ino] = status.st_blocks * BLOCK_BYTES
            except OSError:
                sizes = None
            os.close(fd)
        self._looks = False
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            answer.get_loop().call_soon_threadsafe(_settle, answer, None if sizes is None else sum(sizes.values()))


def _settle(answer: "asyncio.Future[int | None]", size: int | None) -> None:
    if not answer.done():
        answer.set_result(size)
