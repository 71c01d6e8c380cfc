"""How much of something each user may have: a burst, then a rate."""


class UserBudget:
    """The budget of each user: ``burst`` at once, and ``per_second`` for ever."""

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._budgets: dict[int, tuple[float, float]] = {}

    def take(self, uid: int, now: float) -> bool:
        """Return whether ``uid`` may have one more at ``now`` (seconds), and count it then."""
        left, since = self._budgets.get(uid, (self._burst, now))
        left = min(left + (now - since) * self._per_second, self._burst)
        allowed = left >= 1.0
        self._budgets[uid] = (left - allowed, now)
        return allowed
