"""What a fault script says: when a rule strikes, and what it does then.

Pure values. :mod:`scripts.check.faults.script_text` parses their text form, :mod:`scripts.check.faults.fault_plan`
carries them out.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeAlias

from protocol.vhost_user_codec import Channel
from protocol.virtio_balloon import BalloonQueue

RANDOM: Final = "random"
"""A number that is drawn each time."""

Number: TypeAlias = int | str
"""A number, or :data:`RANDOM`."""


Queue: TypeAlias = int | BalloonQueue
"""A queue, by its number or, in a balloon, by what it carries: the number follows from the negotiated features."""


class Side(Enum):
    """A side of the session, as in a script. A proxy has a connection to each."""

    FRONT_END = "front-end"
    BACK_END = "back-end"
    BOTH = "both"


class Signal(Enum):
    """A notification of a queue. The driver kicks the device, the device calls the driver."""

    KICK = "kick"
    CALL = "call"


class FileType(Enum):
    """A descriptor that a message can be given. The value is its name in a script."""

    EVENTFD = "eventfd"
    PIPE = "pipe"
    SOCKET = "socket"
    MEMORY = "memory"
    NULL = "null"


# When a rule strikes.


@dataclass(frozen=True, slots=True, kw_only=True)
class OnMessage:
    """Messages of ``channel`` with this request number, all without one; of queue ``index``, of all without one."""

    channel: Channel
    request: int | None
    index: Queue | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnSignal:
    """Notifications of ``queue``, of every queue without one."""

    signal: Signal
    queue: Queue | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterChains:
    """Once: when ``count`` chains of ``queue`` were made available since its ring started, and one is not used."""

    count: int
    queue: Queue


Trigger: TypeAlias = OnMessage | OnSignal | AfterChains


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which of the matches strike: the ``occurrence``-th alone, each ``every``-th, each with ``probability``."""

    occurrence: int | None = None
    every: int | None = None
    probability: float | None = None


# What it does then.


@dataclass(frozen=True, slots=True)
class Drop:
    """The message or notification does not arrive. The descriptors of a message are closed."""


@dataclass(frozen=True, slots=True)
class Delay:
    """It arrives ``seconds`` later, and so do all messages after it in the same stream."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Duplicate:
    """It arrives ``copies`` times more, each with descriptors of its own."""

    copies: int


@dataclass(frozen=True, slots=True)
class Spurious:
    """``count`` notifications follow that the sender did not make."""

    count: int


@dataclass(frozen=True, slots=True)
class Split:
    """It arrives in pieces: ``at`` are the byte offsets where the message is cut, header included."""

    at: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reorder:
    """It arrives after the next message of its stream, or after a second without one."""


@dataclass(frozen=True, slots=True)
class Corrupt:
    """One byte of the header or payload gets another value."""

    in_header: bool
    offset: Number
    value: Number


@dataclass(frozen=True, slots=True)
class Truncate:
    """Only the first ``length`` bytes of the payload arrive. The header keeps its size."""

    length: int


class Field(Enum):
    """A field that a rule may set. ``index`` is a queue's number, ``num`` what a vring state holds for it, ``value``
    the first 8 bytes of the payload."""

    REQUEST = "request"
    FLAGS = "flags"
    SIZE = "size"
    INDEX = "index"
    NUM = "num"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Set:
    """A field of the message gets ``number``, or that much more if ``is_relative``, modulo the field's width."""

    field: Field
    number: Number
    is_relative: bool = False


@dataclass(frozen=True, slots=True)
class Withhold:
    """Descriptor number ``position`` of the message does not arrive, none of them without a number."""

    position: int | None


@dataclass(frozen=True, slots=True)
class AddFile:
    """A descriptor more arrives with the message."""

    kind: FileType


@dataclass(frozen=True, slots=True)
class Pass:
    """The message or notification goes first, what the rule says next comes after it."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The connection to ``side`` is closed, and the other one a second later."""

    side: Side


@dataclass(frozen=True, slots=True)
class Reset:
    """The back-end is sent a RESET_DEVICE that the front-end did not send."""


@dataclass(frozen=True, slots=True)
class ChangeMemory:
    """The back-end is sent the memory of the front-end once more, as a new table or regions removed and added again."""


@dataclass(frozen=True, slots=True)
class Storm:
    """``count`` notifications of a queue, one each millisecond."""

    signal: Signal
    queue: Queue
    count: int


Effect: TypeAlias = Disconnect | Reset | ChangeMemory | Storm
"""What does not concern the message or notification itself."""

Edit: TypeAlias = (
    Drop | Delay | Duplicate | Spurious | Split | Reorder | Corrupt | Truncate | Set | Withhold | AddFile | Pass
)

Action: TypeAlias = Edit | Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line of a script, ``text`` at ``line``."""

    line: int
    text: str
    trigger: Trigger
    choice: Choice
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultScript:
    """A whole script. ``seed`` is None if the script does not say."""

    rules: tuple[Rule, ...] = ()
    seed: int | None = None
    name: str = field(default="", compare=False)
