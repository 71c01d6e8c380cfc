"""Parses fault scripts. The grammar is in the README beside this file."""

from collections.abc import Callable
from typing import Final

from protocol.vhost_user import BackendRequest, FrontendRequest
from protocol.vhost_user_codec import Channel
from protocol.virtio_balloon import BalloonQueue
from scripts.check.faults.fault_script import (
    RANDOM,
    Action,
    AddFile,
    AfterChains,
    ChangeMemory,
    Choice,
    Corrupt,
    Delay,
    Disconnect,
    Drop,
    Duplicate,
    FaultScript,
    Field,
    FileType,
    Number,
    OnMessage,
    OnSignal,
    Pass,
    Queue,
    Reorder,
    Reset,
    Rule,
    Set,
    Side,
    Signal,
    Split,
    Spurious,
    Storm,
    Trigger,
    Truncate,
    Withhold,
)
from scripts.check.faults.script_words import Words

_U64_MAX: Final = (1 << 64) - 1
_COUNT_MAX: Final = 100_000
_REQUESTS: Final = tuple(request.name for request in (*FrontendRequest, *BackendRequest))
_QUEUES: Final = [queue.value for queue in BalloonQueue]
_LINES: Final = ("seed", "on", "kick", "call", "after")


def parse_script(text: str, name: str) -> FaultScript:
    """Return the script whose text is ``text``. ``name`` is the file's, for messages.

    Raises:
        UsageError: the text has a mistake: its file, line and column, and what was expected there.
    """
    seed: int | None = None
    rules = list[Rule]()
    for number, line in enumerate(text.split("\n"), 1):
        words = Words(name, number, line.rstrip("\r"))
        if words.is_empty:
            continue
        if words.peek() == "seed":
            word = words.take()
            if seed is not None:
                words.refuse(word, "one seed in a script")
            seed = words.number("a seed", most=_U64_MAX)
            words.end()
        else:
            rules.append(_parse_rule(words, number, line))
    return FaultScript(rules=tuple(rules), seed=seed, name=name)


def _parse_rule(words: Words, number: int, line: str) -> Rule:
    trigger, choice = _TRIGGERS[words.name("a line of one of " + _alternatives(_LINES), _TRIGGERS)](words)
    words.expect(":")
    actions = [_parse_action(words, trigger)]
    while words.peek() == ";":
        words.take()
        actions.append(_parse_action(words, trigger))
    words.end()
    text = line.partition("#")[0].strip()
    return Rule(line=number, text=text, trigger=trigger, choice=choice, actions=tuple(actions))


def _parse_message(words: Words) -> tuple[Trigger, Choice]:
    by_back_end = words.accept("back-end")
    is_reply = words.name("`request` or `reply`", ("request", "reply")) == "reply"
    word = words.peek()
    request: int | None
    if word == "any":
        words.take()
        request = None
    elif word[:1].isdigit():
        request = words.number("a request")
    else:
        name = words.name("the name or number of a request, or `any`", (*_REQUESTS, "any"))
        by_back_end = by_back_end or name in BackendRequest.__members__
        request = BackendRequest[name] if name in BackendRequest.__members__ else FrontendRequest[name]
    if by_back_end:
        channel = Channel.FRONTEND_REPLIES if is_reply else Channel.BACKEND_REQUESTS
    else:
        channel = Channel.BACKEND_REPLIES if is_reply else Channel.FRONTEND_REQUESTS
    index = _parse_queue(words, 0xFFFF_FFFF) if words.accept("index") else None
    return OnMessage(channel=channel, request=request, index=index), _parse_choice(words)


def _parse_signal(signal: Signal) -> Callable[[Words], tuple[Trigger, Choice]]:
    def parse(words: Words) -> tuple[Trigger, Choice]:
        words.expect("queue")
        queue = None if words.accept("any") else _parse_queue(words)
        return OnSignal(signal=signal, queue=queue), _parse_choice(words)

    return parse


def _parse_after(words: Words) -> tuple[Trigger, Choice]:
    count = words.number("chains", 1, 0xFFFF_FFFF)
    words.name("`chains`", ("chains", "chain"))
    words.expect("of", "queue")
    return AfterChains(count=count, queue=_parse_queue(words)), Choice()


def _parse_choice(words: Words) -> Choice:
    occurrence: int | None = None
    every: int | None = None
    probability: float | None = None
    if words.accept("occurrence"):
        occurrence = words.number("an occurrence", 1)
    elif words.accept("every"):
        every = words.number("a number of matches", 1)
    if words.accept("with"):
        words.expect("probability")
        probability = words.probability()
    return Choice(occurrence=occurrence, every=every, probability=probability)


def _parse_action(words: Words, trigger: Trigger) -> Action:
    actions = _EFFECTS
    if isinstance(trigger, OnMessage):
        actions = _MESSAGE_ACTIONS
    elif isinstance(trigger, OnSignal):
        actions = _SIGNAL_ACTIONS
    return actions[words.name("a fault: " + _alternatives(tuple(actions)), actions)](words)


def _parse_duplicate(words: Words) -> Action:
    return Duplicate(words.number("copies", 1, _COUNT_MAX) if words.peek() not in ("", ";") else 1)


def _parse_spurious(words: Words) -> Action:
    return Spurious(words.number("notifications", 1, _COUNT_MAX))


def _parse_split(words: Words) -> Action:
    words.expect("at")
    at = [words.number("a byte offset", 1)]
    while words.accept(","):
        at.append(words.number("a byte offset", 1))
    return Split(tuple(sorted(set(at))))


def _parse_reorder(words: Words) -> Action:
    words.expect("with", "next")
    return Reorder()


def _parse_corrupt(words: Words) -> Action:
    in_header = words.name("`payload` or `header`", ("payload", "header")) == "header"
    words.expect("byte")
    offset = _number_or_random(words, "a byte offset", 11 if in_header else 0xFFFF_FFFF)
    words.expect("with")
    return Corrupt(in_header, offset, _number_or_random(words, "a byte", 0xFF))


def _parse_truncate(words: Words) -> Action:
    words.expect("payload", "to")
    return Truncate(words.number("a number of bytes"))


def _parse_set(words: Words) -> Action:
    field = Field(words.name("a field: " + _alternatives([one.value for one in Field]), [one.value for one in Field]))
    word = words.peek()
    most = _U64_MAX if field is Field.VALUE else 0xFFFF_FFFF
    if word[:1] in ("+", "-"):
        taken = words.take()
        below = Words("", 0, taken.text[1:])
        if not taken.text[1:].isascii() or not taken.text[1:].isdigit() or len(taken.text) > 20:
            words.refuse(taken, "a difference, such as +4")
        amount = below.number("a difference", most=_U64_MAX * 10)
        return Set(field, -amount if word[0] == "-" else amount, is_relative=True)
    return Set(field, _number_or_random(words, f"a value of {field.value}", most))


def _parse_withhold(words: Words) -> Action:
    if words.name("`fd` or `fds`", ("fd", "fds")) == "fds":
        return Withhold(None)
    return Withhold(words.number("the position of a descriptor", most=252))


def _parse_add(words: Words) -> Action:
    words.expect("fd")
    kinds = [kind.value for kind in FileType]
    return AddFile(FileType(words.name("a kind of descriptor: " + _alternatives(kinds), kinds)))


def _parse_disconnect(words: Words) -> Action:
    sides = [side.value for side in Side]
    return Disconnect(Side(words.name(_alternatives(sides), sides)))


def _parse_memory(words: Words) -> Action:
    words.expect("change")
    return ChangeMemory()


def _parse_storm(signal: Signal) -> Callable[[Words], Action]:
    def parse(words: Words) -> Action:
        words.expect("queue")
        queue = _parse_queue(words)
        return Storm(signal, queue, words.number("notifications", 1, _COUNT_MAX))

    return parse


def _parse_queue(words: Words, most: int = 255) -> Queue:
    word = words.peek()
    if word in _QUEUES:
        words.take()
        return BalloonQueue(word)
    if word[:1].isalpha():
        words.name("a queue: its number, " + _alternatives(_QUEUES), _QUEUES)
    return words.number("a queue", most=most)


def _number_or_random(words: Words, what: str, most: int) -> Number:
    if words.accept(RANDOM):
        return RANDOM
    return words.number(what, most=most)


def _alternatives(words: tuple[str, ...] | list[str]) -> str:
    return " or ".join((", ".join(words[:-1]), words[-1]))


_TRIGGERS: Final[dict[str, Callable[[Words], tuple[Trigger, Choice]]]] = {
    "on": _parse_message,
    "kick": _parse_signal(Signal.KICK),
    "call": _parse_signal(Signal.CALL),
    "after": _parse_after,
}

_EFFECTS: Final[dict[str, Callable[[Words], Action]]] = {
    "pass": lambda _words: Pass(),
    "disconnect": _parse_disconnect,
    "reset": lambda _words: Reset(),
    "memory": _parse_memory,
    "kick": _parse_storm(Signal.KICK),
    "call": _parse_storm(Signal.CALL),
}

_SIGNAL_ACTIONS: Final[dict[str, Callable[[Words], Action]]] = {
    "drop": lambda _words: Drop(),
    "delay": lambda words: Delay(words.seconds()),
    "spurious": _parse_spurious,
    **_EFFECTS,
}

_MESSAGE_ACTIONS: Final[dict[str, Callable[[Words], Action]]] = {
    "drop": lambda _words: Drop(),
    "delay": lambda words: Delay(words.seconds()),
    "duplicate": _parse_duplicate,
    "split": _parse_split,
    "reorder": _parse_reorder,
    "corrupt": _parse_corrupt,
    "truncate": _parse_truncate,
    "set": _parse_set,
    "withhold": _parse_withhold,
    "add": _parse_add,
    **_EFFECTS,
}
