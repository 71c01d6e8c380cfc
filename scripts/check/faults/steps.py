"""What a proxy is to do, as a fault plan says. Times are the clock's that the plan was given, in seconds."""

from dataclasses import dataclass
from typing import TypeAlias

from protocol.vhost_user_codec import Channel
from scripts.check.faults.fault_script import Side, Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Send ``data`` to the reader of ``channel``. A file is one that was received, or a FileType: a new one."""

    at: float
    channel: Channel
    data: bytes
    files: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """Pass ``count`` notifications of ``queue``."""

    at: float
    signal: Signal
    queue: int
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Close the connection to a side."""

    at: float
    side: Side


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReset:
    """Send the back-end a RESET_DEVICE."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SendMemory:
    """Send the back-end the front-end's memory once more."""

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """Report that the rule at ``line`` struck."""

    at: float
    line: int
    text: str


Step: TypeAlias = Send | Notify | Close | SendReset | SendMemory | Struck
