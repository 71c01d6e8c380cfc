"""The events of sessions, limited across the sessions of one user.

Within a session :mod:`host.events.event_limit` bounds them. A front-end that connects and closes in a loop would fill a
disk nevertheless, with a few events of each session. So a user's sessions have a budget. A session beyond it is silent
for a second, draws on the budget again, and so on; if it ends meanwhile it is only counted. A session that stays is
told of after a minute in any case.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from host.events.queue_events import Prepare
from host.peers.user_budget import UserBudget

SESSIONS_BURST: Final = 2000
"""Sessions of one user that may begin at once, each with its events: all the machines of a host that starts."""

SESSIONS_PER_SECOND: Final = 10.0
"""Sessions of one user that may begin in a second for ever: about 2 GB of events a day."""

SETTLED_AFTER: Final = 1.0
LONGEST_SILENCE: Final = 60.0
"""Seconds after which a session is no longer one of a loop and draws on the budget again, twice as long each time, and
seconds after which it is told of in any case."""

REPORT_INTERVAL: Final = 1.0
"""Seconds of silent sessions in one event."""

Emit = Callable[..., None]
"""Writes one event: ``emit(name, **fields)``."""


class SessionLimit:
    """The budgets of all users. ``emit`` writes ``suppressed`` events about sessions that were silent to their end."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._budget = UserBudget(SESSIONS_BURST, SESSIONS_PER_SECOND)
        self._silent: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def allows(self, uid: int, now: float) -> bool:
        """Return whether a session of ``uid`` that begins at ``now`` (seconds) may be told of at once."""
        return self._budget.take(uid, now)

    def count_silent(self, uid: int) -> None:
        """Count a session that ended without an event."""
        self._silent[uid] = self._silent.get(uid, 0) + 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REPORT_INTERVAL, self.flush)

    def flush(self) -> None:
        """Write how many sessions of each user were silent since this was last done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        silent, self._silent = self._silent, {}
        for uid, count in silent.items():
            self._emit("suppressed", of="session", uid=uid, count=count)


class SessionEvents:
    """The events of one session. ``prepare`` builds one and returns what writes it. ``on_audible`` is called when the
    session is known to have any: at :meth:`begin` or later."""

    def __init__(self, prepare: Prepare, limit: SessionLimit, on_audible: Callable[[], None]) -> None:
        self._prepare = prepare
        self._limit = limit
        self._on_audible = on_audible
        self._uid = 0
        self._connected: dict[str, Any] = {}
        self._suppressed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._silence = 0.0
        self._has_ended = False
        self.audible = False

    def begin(self, uid: int, pid: int, name: str = "") -> None:
        """Write the ``connected`` event of a session of this user and process, and of a guest that is called ``name``
        ("" without a name), now or when it has settled."""
        loop = asyncio.get_running_loop()
        self._uid = uid
        self._connected = {"t": round(loop.time(), 6), "pid": pid, **({"name": name} if name else {})}
        self._speak_if_allowed()

    def resume(self, uid: int) -> None:
        """Go on with a session that was told of."""
        self._uid = uid
        self.audible = True

    def _speak_if_allowed(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if not self._limit.allows(self._uid, loop.time()) and self._silence < LONGEST_SILENCE:
            wait = max(SETTLED_AFTER, self._silence)
            self._silence += wait
            self._timer = loop.call_later(wait, self._speak_if_allowed)
            return
        self.audible = True
        self.emit("connected", **self._connected)
        self._on_audible()
        if self._suppressed:
            self.emit("suppressed", of="event", count=self._suppressed)

    def emit(self, event: str, **fields: object) -> None:
        """Write one event, or count it. After :meth:`end` there are no more."""
        if self._has_ended:
            return
        if self.audible:
            self._prepare(event, **fields)()
        else:
            self._suppressed += 1

    def prepare(self, event: str, **fields: object) -> Callable[[], None]:
        """On any thread: build one event. Return what writes it, or counts it, on the event loop."""
        return partial(self._write, self._prepare(event, **fields))

    def _write(self, write: Callable[[], None]) -> None:
        if self._has_ended:
            return
        if self.audible:
            write()
        else:
            self._suppressed += 1

    def leave(self) -> None:
        """Write no more: another process goes on with the session, which it takes for one that was told of."""
        if not self.audible:
            self._silence = LONGEST_SILENCE
            if self._timer is not None:
                self._timer.cancel()
            self._speak_if_allowed()
        self._has_ended = True

    def end(self, **fields: object) -> None:
        """Write the ``disconnected`` event, the session's last, or count the session.

        A worker that the front-end blocks may finish a chain after that: its events would contradict the sums.
        """
        if self._timer is not None:
            self._timer.cancel()
        if self.audible:
            self.emit("disconnected", **fields)
        else:
            self._limit.count_silent(self._uid)
        self._has_ended = True
