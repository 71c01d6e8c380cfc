"""The states of a running queue, as the event loop sees it: who has the ring, and what happens next.

Only the event loop moves a queue from state to state. A worker that has the ring reads the state to see whether it is
to let go.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final


class ServiceState(Enum):
    """Who has the ring."""

    IDLE = "idle"
    """The event loop: it waits for a kick."""
    WORKING = "working"
    """A worker. Kicks go to it."""
    KICKED = "kicked"
    """A worker, and the ring is to be looked at once more when it is done."""
    RESTING = "resting"
    """The event loop, which ignores kicks for a moment: they brought no chain for a whole turn."""
    STOPPING = "stopping"
    """A worker, which is to let go after the chain in hand."""
    STOPPED = "stopped"
    """The event loop, and the ring is not touched again."""
    BROKEN = "broken"
    """The event loop. The driver broke a rule, and the ring is not touched again."""


class ServiceEvent(Enum):
    """What moves a queue from one state to another."""

    KICK = "kick"
    """The ring is to be looked at."""
    EMPTY = "empty"
    """The worker found nothing more."""
    MORE = "more"
    """The worker had its share of chains and left some."""
    SPURIOUS = "spurious"
    """The worker was kicked a whole turn long and found no chain."""
    BREAK = "break"
    """The worker found the ring broken."""
    RESTED = "rested"
    """The pause after spurious kicks is over."""
    STOP = "stop"
    """The ring is to be let go."""


_State, _Event = ServiceState, ServiceEvent

TRANSITIONS: Final[Mapping[tuple[ServiceState, ServiceEvent], ServiceState]] = MappingProxyType(
    {
        (_State.IDLE, _Event.KICK): _State.WORKING,
        (_State.IDLE, _Event.STOP): _State.STOPPED,
        (_State.RESTING, _Event.KICK): _State.WORKING,
        (_State.RESTING, _Event.RESTED): _State.IDLE,
        (_State.RESTING, _Event.STOP): _State.STOPPED,
        (_State.WORKING, _Event.KICK): _State.KICKED,
        (_State.WORKING, _Event.EMPTY): _State.IDLE,
        (_State.WORKING, _Event.MORE): _State.WORKING,
        (_State.WORKING, _Event.SPURIOUS): _State.RESTING,
        (_State.WORKING, _Event.BREAK): _State.BROKEN,
        (_State.WORKING, _Event.STOP): _State.STOPPING,
        (_State.KICKED, _Event.KICK): _State.KICKED,
        (_State.KICKED, _Event.EMPTY): _State.WORKING,
        (_State.KICKED, _Event.MORE): _State.WORKING,
        (_State.KICKED, _Event.SPURIOUS): _State.WORKING,
        (_State.KICKED, _Event.BREAK): _State.BROKEN,
        (_State.KICKED, _Event.STOP): _State.STOPPING,
        (_State.STOPPING, _Event.KICK): _State.STOPPING,
        (_State.STOPPING, _Event.EMPTY): _State.STOPPED,
        (_State.STOPPING, _Event.MORE): _State.STOPPED,
        (_State.STOPPING, _Event.SPURIOUS): _State.STOPPED,
        (_State.STOPPING, _Event.BREAK): _State.BROKEN,
        (_State.STOPPED, _Event.KICK): _State.STOPPED,
        (_State.BROKEN, _Event.KICK): _State.BROKEN,
        (_State.BROKEN, _Event.STOP): _State.BROKEN,
    }
)
"""All transitions. A missing pair is a fault of the daemon."""

HAS_WORKER: Final = frozenset({ServiceState.WORKING, ServiceState.KICKED, ServiceState.STOPPING})
"""The states in which a worker has the ring."""

IS_OVER: Final = frozenset({ServiceState.STOPPING, ServiceState.STOPPED, ServiceState.BROKEN})
"""The states in which nothing new begins."""
