"""How many descriptors of front-ends the supervisor holds, by the process and the user that passed them.

Each worker limits what its front-ends pass; the supervisor has those of all workers. One process has at most half of
them and one user three quarters, as in a daemon of one process (:mod:`host.peers.peers`).
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple


class Owner(NamedTuple):
    """A front-end's process and its user. A process of another pid namespace has no number here (0): the session's is
    in its place, below zero."""

    uid: int
    pid: int


class DescriptorShares:
    """The shares of ``shared()`` descriptors."""

    def __init__(self, shared: Callable[[], int]) -> None:
        self._shared = shared
        self._of_processes: Counter[Owner] = Counter()
        self._of_users: Counter[int] = Counter()

    def take(self, owner: Owner, count: int) -> bool:
        """Count so many more, and return True, if they are within the limits."""
        shared = self._shared()
        if (
            self._of_processes[owner] + count > shared // 2
            or self._of_users[owner.uid] + count > shared * 3 // 4
            or self._of_users.total() + count > shared
        ):
            return False
        self._of_processes[owner] += count
        self._of_users[owner.uid] += count
        return True

    def give_back(self, owner: Owner, count: int) -> None:
        """Count so many less."""
        self._of_processes[owner] -= count
        self._of_users[owner.uid] -= count
        if not self._of_processes[owner]:
            del self._of_processes[owner]
        if not self._of_users[owner.uid]:
            del self._of_users[owner.uid]
