"""Waiting for the target, never longer than it may take."""

import time
from collections.abc import Callable
from typing import Final

DEADLINE: Final = 5.0
"""Seconds in which a target has to answer. Targets answer within milliseconds; a busy machine may take a second."""

_SPINS: Final = 2000
_PAUSE: Final = 0.0005


def becomes_true(condition: Callable[[], bool], seconds: float = DEADLINE) -> bool:
    """Return whether ``condition`` becomes true within ``seconds``.

    The first moments are spent spinning: what a device does right after it gave a buffer back has to be seen.
    """
    for _ in range(_SPINS):
        if condition():
            return True
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_PAUSE)
    return True


def stays_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether ``condition`` holds for ``seconds``, which is the only proof of something that must not happen."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not condition():
            return False
        time.sleep(_PAUSE)
    return condition()
