"""What is right when a back-end is sent something wrong.

With REPLY_ACK a back-end has to say whether it carried a message out: 0 is done, anything else failed (vhost-user,
"VHOST_USER_PROTOCOL_F_REPLY_ACK"). So a message that cannot have been carried out must not be acknowledged with 0, and
one with NEED_REPLY must be answered. A back-end may end the connection instead ("Communication": only in exceptional
circumstances), which is worth telling, because a front-end such as QEMU then has lost the device.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from protocol.errors import BalloonError
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import Payload
from scripts.check.generic.target import NEED_REPLY, Answer, Kind, Target
from scripts.check.verdict import Failed, Found, NotExercised, Outcome


class Bad(NamedTuple):
    """A message that is wrong: in words, and its parts. ``payload`` may be raw bytes."""

    what: str
    request: int
    payload: Payload | bytes = None
    fds: Sequence[int] = ()
    flags: int = NEED_REPLY


Done = Callable[[str], Outcome] | None
"""What it means when a wrong message is acknowledged as done: Failed, Found or what makes one from the
reason, or None where the text allows it."""


def refuses(target: Target, bad: Iterable[Bad], again: Callable[[], object], *, done: Done = Failed) -> None:
    """Send each message of ``bad``; raise the worst outcome of them with all its reasons.

    ``again`` negotiates on a new connection, where the back-end has ended the one before.
    """
    outcomes: list[Outcome | None] = []
    ended = True
    for message in bad:
        if ended:
            if outcomes:
                target.reconnect()
            again()
        answer = target.attempt(message.request, message.payload, message.fds, flags=message.flags)
        outcome = judged(message.what, answer, done)
        ended = not target.connection.is_usable()
        if ended and answer.kind is Kind.REFUSED:
            outcome = Found(f"{message.what}: refused, and the connection then ended, although it could go on")
        outcomes.append(outcome)
    raise_worst(outcomes)


def judged(what: str, answer: Answer, done: Done = Failed) -> Outcome | None:
    """Return the outcome of one wrong message, None for what is right."""
    match answer.kind:
        case Kind.REFUSED:
            return None
        case Kind.ACCEPTED:
            if done is None:
                return None
            return done(f"{what}: answered with {_words(answer.data)}, as if it had been done")
        case Kind.HUNG_UP:
            return Found(what + _HUNG_UP)
        case Kind.SILENT:
            return Failed(what + _SILENT)
        case Kind.UNHEARD:
            return NotExercised(what + _UNHEARD)


def _words(reply: bytes) -> str:
    if not any(reply):
        return "0"
    return reply.hex() if len(reply) <= _SHOWN else f"{reply[:_SHOWN].hex()} and more"


_SHOWN: Final = 24
_NAMED: Final = 4

_HUNG_UP: Final = ": the connection was ended instead of a refusal; QEMU then loses the device"
_SILENT: Final = ": not answered, although sent with NEED_REPLY"
_UNHEARD: Final = ": without REPLY_ACK there is no telling whether that was refused"
_DONE: Final = ": answered with 0, as if it had been done"
CLOSED_LATE: Final = ": the descriptor is closed only with the connection"
KEPT: Final = ": the descriptor outlives the connection"
_TAILS: Final = (_HUNG_UP, _SILENT, _UNHEARD, _DONE, CLOSED_LATE, KEPT)
"""What is said of several messages at a time."""

_ORDER: Sequence[type[Outcome]] = (Failed, Found, NotExercised)


def raise_worst(outcomes: Sequence[Outcome | None]) -> None:
    """Raise the worst kind of outcome with its reasons. NotExercised counts only if nothing passed."""
    there = [outcome for outcome in outcomes if outcome is not None]
    passed = len(outcomes) > len(there)
    for kind in _ORDER:
        reasons = list(dict.fromkeys(outcome.reason for outcome in there if isinstance(outcome, kind)))
        if reasons and not (kind is NotExercised and passed):
            raise kind(_joined(reasons), *dict.fromkeys(one for outcome in there for one in outcome.clauses))


def _joined(reasons: Sequence[str]) -> str:
    """Return reasons as one sentence; what is true of several messages is said once."""
    groups: dict[str, list[str]] = {}
    for reason in reasons:
        tail = next((tail for tail in _TAILS if reason.endswith(tail)), "")
        groups.setdefault(tail or reason, []).append(reason.removesuffix(tail))
    parts = []
    for tail, heads in groups.items():
        more = f" and {len(heads) - _NAMED} more" if len(heads) > _NAMED else ""
        parts.append(", ".join(heads[:_NAMED]) + (more + tail if tail in _TAILS else ""))
    return "; ".join(parts)


def survives(target: Target) -> None:
    """Raise Found unless the connection is still of use."""
    try:
        target.check_alive()
    except (BalloonError, Failed) as error:
        raise Found("the connection was ended; QEMU then loses the device") from error


def request_name(request: int) -> str:
    """Return the name of a request, or its number."""
    try:
        return FrontendRequest(request).name
    except ValueError:
        return f"request {request}"
