"""Faults of a device that discards after it has given a chain back.

A late discard is made when the front-end next asks for the features, before it is answered: in this way a case waits
for all of its messages, and it sees the discard however slow the machine is. Without that question it is made after
half a second.
"""

import os
import threading
from collections import deque
from functools import partial
from typing import Any, Final

from host.ring import ring_service
from host.vhost_user import feature_requests
from scripts.check.broken.fault import fault, replaced

LATEST: Final = 0.5
"""Seconds after which a late discard is made without the question."""


class _LateDiscards:
    # Discards that are put off. They are carried out on the thread that serves messages, or on a timer's.

    def __init__(self, punch: Any) -> None:
        self._punch = punch
        self._due: deque[tuple[int, int, int]] = deque()

        def make(original: Any) -> Any:
            def get_features(session: Any, message: Any) -> Any:
                self.carry_out()
                return (yield from original(session, message))

            return get_features

        replaced(feature_requests, "get_features", make)

    def add(self, fd: int, offset: int, length: int) -> None:
        self._due.append((os.dup(fd), offset, length))
        timer = threading.Timer(LATEST, self.carry_out)
        timer.daemon = True
        timer.start()

    def carry_out(self) -> None:
        while self._due:
            try:
                fd, offset, length = self._due.popleft()
            except IndexError:  # the other thread took it
                return
            self._punch(fd, offset, length)
            os.close(fd)


def _put_off(late: _LateDiscards, fd: int, offset: int, length: int) -> int:
    late.add(fd, offset, length)
    return 0


def _discard_twice(late: _LateDiscards, punch: Any, fd: int, offset: int, length: int) -> int:
    late.add(fd, offset, length)
    result: int = punch(fd, offset, length)
    return result


@fault("acknowledged-first", caught_by=("report-as-linux/split", "report-as-linux/packed"))
def _() -> None:
    """A report is acknowledged at once and discarded later."""
    replaced(ring_service, "punch_hole", lambda original: partial(_put_off, _LateDiscards(original)))


@fault("discarded-twice", caught_by=("report-no-late-discard/split", "inflate-no-late-discard/packed"))
def _() -> None:
    """What was discarded is discarded once more after the acknowledgement."""
    replaced(ring_service, "punch_hole", lambda original: partial(_discard_twice, _LateDiscards(original), original))
