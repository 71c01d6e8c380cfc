"""The end of a session: waiting for what it has in hand, but not for ever."""

import asyncio
import logging
from typing import Final

log = logging.getLogger(__name__)

RELEASE_PATIENCE: Final = 5.0
"""Seconds for which the end of a session waits for its workers. A front-end can block one for any time, by a lock of
its memory's file. The worker keeps its resources until it returns, and the peer's limits count them."""

STOP_PATIENCE: Final = 0.3
"""The same when the daemon stops, which it does within a second. A chain that takes longer is cut off with the process,
which is to its driver as if the daemon had been killed."""

_unreleased: Final[set[asyncio.Task[None]]] = set()
"""Sessions that have ended except for a worker that is blocked."""


def unreleased_sessions() -> int:
    """Return how many sessions have ended but for a worker that a front-end holds up."""
    return len(_unreleased)


async def wait_for_release(release: asyncio.Task[None], patience: float) -> None:
    """Wait for ``release``, at most ``patience`` seconds. What it waits for keeps its resources until then."""
    done, _ = await asyncio.wait({release}, timeout=patience)
    if done:
        await release
        return
    if patience == RELEASE_PATIENCE:  # else the daemon stops
        log.warning("a call for a front-end that has gone has not returned; what it uses is kept until it does")
    _unreleased.add(release)
    release.add_done_callback(_unreleased.discard)
