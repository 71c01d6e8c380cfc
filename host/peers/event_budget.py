"""How many events all sessions of a user together may cause with their messages and with what is refused to them.

Within a session :mod:`host.events.event_limit` bounds each kind of event, but a user may have hundreds of sessions.
"""

from typing import Final

EVENTS_BURST: Final = 5000.0
"""Events of one user at once: a few hundred machines that start."""

EVENTS_PER_SECOND: Final = 100.0
"""Events of one user in a second for ever: about 2 GB a day."""


class EventBudget:
    """The budget of each user."""

    def __init__(self) -> None:
        self._budgets: dict[int, tuple[float, float]] = {}

    def take(self, uid: int, now: float) -> bool:
        """Return whether ``uid`` may cause one more event at ``now`` (seconds), and count it then."""
        left, since = self._budgets.get(uid, (EVENTS_BURST, now))
        left = min(left + (now - since) * EVENTS_PER_SECOND, EVENTS_BURST)
        allowed = left >= 1.0
        self._budgets[uid] = (left - allowed, now)
        return allowed
