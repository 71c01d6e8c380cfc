"""The limits of one peer's share of the daemon's resources, and the reserve of the daemon itself.

A peer is a process, and its user may have several. Descriptors come with messages, and the kernel drops them when the
daemon is at its limit of open files, which would affect every peer. So the daemon keeps a reserve that one message
cannot exhaust, and a message whose descriptors would exceed a limit is refused with the limit's name.

======================  ==========================  ============================
what                    of one process              of all processes of a user
======================  ==========================  ============================
sessions                :data:`SESSIONS_MAX`        by their descriptors
descriptors             half of what is shared      three quarters of it
helpers                 ``HELPERS_MAX``             ``USER_HELPERS_MAX``
workers                 ``PROCESS_WORKERS``,        ``USER_WORKERS_MAX``
                        blocked ones more
chains of over 4096     1 in hand                   by the processes
events                  by the user                 100 a second
memory regions          by their descriptors, and 509 for each session
======================  ==========================  ============================
"""

import resource
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final
from weakref import WeakValueDictionary

from host.peers.helper_threads import HelperThreads
from host.peers.helpers import Helpers
from host.peers.user_budget import UserBudget
from host.peers.workers import PeerId, Workers
from protocol.errors import VhostUserError
from protocol.message_limits import FDS_MAX

SESSIONS_MAX: Final = 256
"""Most sessions of one process."""

SESSION_DESCRIPTORS: Final = 20
"""Descriptors that the daemon itself needs for a session: its socket, the watch of its process, and the mappings of its
rings and its log."""

EVENTS_BURST: Final = 5000.0
"""Events that all sessions of a user together may cause at once with their messages and with what is refused to them: a
few hundred machines that start. Within a session :mod:`host.events.event_limit` bounds each kind of event."""

EVENTS_PER_SECOND: Final = 100.0
"""Events of one user in a second for ever: about 2 GB a day."""

RESERVE: Final = FDS_MAX + 67
"""Descriptors reserved for the daemon: one message's, before they are counted, its own files and control clients."""


class PeerLimitError(VhostUserError):
    """A limit of a peer is met."""


class Membership:
    """One session of a peer, which counts what it holds. It has the peer's helpers and workers."""

    def __init__(
        self, peers: "Peers", peer: PeerId, helpers: Helpers, workers: Executor, large_chains: threading.Lock
    ) -> None:
        self.peer = peer
        self.helpers = helpers
        self.workers = workers
        self.large_chains = large_chains
        """The lock of its process: held while a large chain of one of the process's rings is in hand."""
        self.held: Callable[[], int] = int
        """Returns how many descriptors the session has received and still holds."""
        self.counted = 0
        """What it held when that was counted last."""
        self._peers = peers

    def recount(self) -> None:
        """Count anew what the session holds. Due after each message: what it held before counts until then."""
        self._peers.count(self, self.held())

    def check(self, descriptors: int) -> None:
        """Check that the session may have so many more descriptors. Raises :class:`PeerLimitError`."""
        self.recount()
        self._peers.check(self.peer, descriptors)

    def may_emit(self, now: float) -> bool:
        """Return whether its user may cause one more event at ``now`` (seconds), and count it then."""
        return self._peers.events.take(self.peer.uid, now)

    def leave(self) -> None:
        """Stop counting: the session has released its descriptors."""
        self._peers.leave(self)


class Peers:
    """All peers of a daemon, known by their sessions. On the event loop."""

    def __init__(self, executor: Executor) -> None:
        """Share out the threads of ``executor``. Raises like :class:`Workers`."""
        self._workers = Workers(executor)
        self._members: dict[PeerId, list[Membership]] = {}
        # Sums of what the members hold, by process and by user: hundreds of sessions that begin are not all asked at
        # each message of each.
        self._of_process: Counter[PeerId] = Counter()
        self._of_user: Counter[int] = Counter()
        self._of_all = 0
        # Kept alive by the sessions that have them, and by the calls that they make: a process that comes back while
        # calls for its last session are blocked has no further helpers.
        self._helpers: WeakValueDictionary[PeerId, Helpers] = WeakValueDictionary()
        self._helper_threads: WeakValueDictionary[int, HelperThreads] = WeakValueDictionary()
        self._nameless = 0
        self.events = UserBudget(EVENTS_BURST, EVENTS_PER_SECOND)

    def close(self) -> None:
        """Take note that the daemon stops: that no worker can be had any more is not worth a word."""
        self._workers.close()

    def works_alone(self) -> bool:
        """Return whether not more than one worker is at work for all peers together. From any thread."""
        return self._workers.at_work <= 1

    def identify(self, uid: int, pid: int) -> PeerId:
        """Return whose a session is. Processes of another pid namespace have no number here (0): each of their sessions
        is a peer of its own, with a number below zero."""
        if pid == 0:
            self._nameless += 1
        return PeerId(uid, pid or -self._nameless)

    def join(self, peer: PeerId) -> Membership:
        """Return the membership of a new session of ``peer``. It counts, even if :meth:`check_session` refuses it."""
        others = self._members.setdefault(peer, [])
        workers = self._workers.share(peer)
        helpers = self._helpers_of(peer, workers)
        large_chains = others[0].large_chains if others else threading.Lock()
        member = Membership(self, peer, helpers, workers, large_chains)
        others.append(member)
        self._add(peer, SESSION_DESCRIPTORS)
        return member

    def count(self, member: Membership, held: int) -> None:
        """Take note that ``member`` has received ``held`` descriptors and still holds them."""
        self._add(member.peer, held - member.counted)
        member.counted = held

    def _add(self, peer: PeerId, count: int) -> None:
        self._of_process[peer] += count
        self._of_user[peer.uid] += count
        self._of_all += count

    def _helpers_of(self, peer: PeerId, workers: Executor) -> Helpers:
        helpers = self._helpers.get(peer)
        if helpers is None:
            threads = self._helper_threads.get(peer.uid)
            if threads is None:
                threads = self._helper_threads[peer.uid] = HelperThreads()
            helpers = self._helpers[peer] = Helpers(workers, threads=threads, process=peer.pid)
        return helpers

    def check_session(self, peer: PeerId) -> None:
        """Check that the newest session of ``peer`` may stay.

        Raises:
            PeerLimitError: it is one too many.
        """
        if len(self._members[peer]) > SESSIONS_MAX:
            raise PeerLimitError(f"process {peer.pid} has {SESSIONS_MAX} sessions, the most that one process may have")
        self.check(peer, 0)

    def leave(self, member: Membership) -> None:
        """Forget a session."""
        members = self._members[member.peer]
        members.remove(member)
        self._add(member.peer, -SESSION_DESCRIPTORS - member.counted)
        if not members:
            del self._members[member.peer], self._of_process[member.peer]
        if not self._of_user[member.peer.uid]:
            del self._of_user[member.peer.uid]

    def check(self, peer: PeerId, descriptors: int) -> None:
        """Check that ``peer`` may have so many descriptors more.

        Raises:
            PeerLimitError: its process, its user or all together would have too many.
        """
        if (refusal := self._refusal(peer, descriptors)) is None:
            return
        for member in (member for members in self._members.values() for member in members):
            member.recount()  # some may hold fewer than at their last message
        refusal = self._refusal(peer, descriptors)
        if refusal is not None:
            raise PeerLimitError(refusal)

    def _refusal(self, peer: PeerId, descriptors: int) -> str | None:
        shared = shared_descriptors()
        helpers = self._helpers.get(peer)
        closing = {uid: threads.closing for uid, threads in self._helper_threads.items()}
        for who, count, most in (
            (f"process {peer.pid}", self._of_process[peer] + (0 if helpers is None else helpers.closing), shared // 2),
            (f"user {peer.uid}", self._of_user[peer.uid] + closing.get(peer.uid, 0), shared * 3 // 4),
            ("all processes together", self._of_all + sum(closing.values()), shared),
        ):
            if count + descriptors > most:
                return f"{who}: {count + descriptors} descriptors would be held, {most} is the most"
        return None


def shared_descriptors() -> int:
    """Return how many descriptors all sessions together may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(limit - RESERVE, limit // 2)
