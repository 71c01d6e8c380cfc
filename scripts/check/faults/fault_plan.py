"""Carries a fault script out on the messages and notifications of sessions, without touching any of them.

A :class:`FaultPlan` is one run of a script: its rules count their matches over all sessions, so that a rule for the
first occurrence does not strike again in the session that follows. Each session has a :class:`SessionPlan`::

    for step in plan.message(piece, now):
        carry out step at step.at; equal times in the order of the steps

Same script, seed, messages, notifications and times: same steps. Without rules a message becomes one
:class:`~scripts.check.faults.steps.Send` at once, a notification one :class:`~scripts.check.faults.steps.Notify`.
"""

from collections.abc import Sequence
from random import Random
from typing import Final

from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import Channel
from protocol.virtio_balloon import queue_order
from scripts.check.faults.fault_script import (
    Action,
    AfterChains,
    ChangeMemory,
    Delay,
    Disconnect,
    Drop,
    Edit,
    Effect,
    FaultScript,
    OnMessage,
    OnSignal,
    Pass,
    Queue,
    Reset,
    Rule,
    Side,
    Signal,
    Spurious,
    Storm,
    Trigger,
)
from scripts.check.faults.message_edit import MessageEdit
from scripts.check.faults.passing.message_pieces import Piece
from scripts.check.faults.steps import Close, Notify, Send, SendMemory, SendReset, Step, Struck

SPLIT_GAP: Final = 0.005
"""Seconds between the pieces of a message that is split, so that they are read one by one."""

SPURIOUS_GAP: Final = 0.001
"""Seconds between notifications that the sender did not make: an eventfd adds up what comes at once."""

HOLD: Final = 1.0
"""Most seconds that a message waits for the next one, after which it is to arrive."""

LINGER: Final = 1.0
"""Seconds that the other side's connection outlives one that is disconnected."""

_OTHER: Final = {Side.FRONT_END: Side.BACK_END, Side.BACK_END: Side.FRONT_END}


class _ArmedRule:
    """A rule, how often it has matched, and its random numbers."""

    def __init__(self, rule: Rule, random: Random) -> None:
        self.rule = rule
        self.random = random
        self._matches = 0

    @property
    def has_matched(self) -> bool:
        """Whether there was a match."""
        return self._matches > 0

    def strikes(self) -> bool:
        """Count a match; return whether the rule strikes."""
        self._matches += 1
        choice = self.rule.choice
        if isinstance(self.rule.trigger, AfterChains) and self._matches > 1:
            return False
        if choice.occurrence is not None and self._matches != choice.occurrence:
            return False
        if choice.every is not None and self._matches % choice.every:
            return False
        return choice.probability is None or self.random.random() < choice.probability


class FaultPlan:
    """One run of ``script``. ``seed`` replaces the script's own."""

    def __init__(self, script: FaultScript, seed: int | None = None) -> None:
        self.script = script
        self.seed = next((one for one in (seed, script.seed) if one is not None), 0)
        # Numbers of its own for each rule: another rule before it does not change them.
        self._rules = [_ArmedRule(rule, Random(f"{self.seed} {rule.line}")) for rule in script.rules]

    def session(self) -> "SessionPlan":
        """Return the plan of a further session."""
        return SessionPlan(self._rules)


class SessionPlan:
    """The plan of one session between a front-end and a back-end."""

    def __init__(self, rules: Sequence[_ArmedRule]) -> None:
        self._rules = rules
        self._features = 0
        self._free_at = dict.fromkeys(Channel, 0.0)
        self._held: dict[Channel, tuple[float, list[Send]]] = {}

    def message(self, piece: Piece, now: float) -> list[Step]:
        """Return the steps for a piece that has arrived."""
        if piece.channel is Channel.FRONTEND_REQUESTS and piece.request == FrontendRequest.SET_FEATURES:
            self._features = int.from_bytes(piece.payload[:8], "little")
        edit = MessageEdit(piece)
        before, after = list[Effect](), list[Effect]()
        steps = list[Step]()
        for armed in self._rules:
            if not self._is_meant(armed.rule.trigger, piece) or not armed.strikes():
                continue
            steps.append(Struck(at=now, line=armed.rule.line, text=armed.rule.text))
            for action in _sort_out(armed.rule.actions, before, after):
                edit.apply(action, armed.random)
        for effect in before:
            steps += self._carry_out(effect, max(now, self._free_at[piece.channel]))
        steps += self._deliver(piece.channel, edit, now)
        for effect in after:
            steps += self._carry_out(effect, max(now, self._free_at[piece.channel]))
        return steps

    def _deliver(self, channel: Channel, edit: MessageEdit, now: float) -> list[Send]:
        at = max(now + edit.delay, self._free_at[channel])
        sends = list[Send]()
        for _ in range(edit.copies):
            files = tuple(edit.files)
            for data in edit.pieces():
                sends.append(Send(at=at, channel=channel, data=data, files=files))
                files = ()
                at += SPLIT_GAP if edit.cuts else 0.0
        if edit.reorders and sends and channel not in self._held:
            self._held[channel] = now + edit.delay + HOLD, sends
            return []
        if sends:
            self._free_at[channel] = sends[-1].at
            sends += self._release(channel, sends[-1].at)
        return sends

    def _release(self, channel: Channel, now: float) -> list[Send]:
        if channel not in self._held:
            return []
        _, sends = self._held.pop(channel)
        late = max(now, self._free_at[channel]) - sends[0].at
        moved = [Send(at=send.at + max(late, 0.0), channel=channel, data=send.data, files=send.files) for send in sends]
        self._free_at[channel] = moved[-1].at
        return moved

    def end(self, channel: Channel, now: float) -> list[Step]:
        """Return the steps for the end of a stream: a message that waits for the next one arrives."""
        return [*self._release(channel, now)]

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` is due, None if it is not."""
        return min((due for due, _ in self._held.values()), default=None)

    def tick(self, now: float) -> list[Step]:
        """Return the steps for messages that have waited for the next one long enough."""
        due = [channel for channel, (when, _) in self._held.items() if when <= now]
        return [send for channel in due for send in self._release(channel, now)]

    def signal(self, signal: Signal, queue: int, now: float, count: int = 1) -> list[Step]:
        """Return the steps for ``count`` notifications that have arrived. They are one match of a rule."""
        steps, before, after = list[Step](), list[Effect](), list[Effect]()
        at, passes, spurious = now, count, 0
        for armed in self._rules:
            trigger = armed.rule.trigger
            if not isinstance(trigger, OnSignal) or trigger.signal is not signal:
                continue
            if trigger.queue is not None and not self._is_queue(trigger.queue, queue):
                continue
            if not armed.strikes():
                continue
            steps.append(Struck(at=now, line=armed.rule.line, text=armed.rule.text))
            for action in _sort_out(armed.rule.actions, before, after):
                match action:
                    case Drop():
                        passes = 0
                    case Delay(seconds):
                        at += seconds
                    case Spurious(more):
                        spurious += more
                    case _:
                        pass
        for effect in before:
            steps += self._carry_out(effect, now)
        if passes:
            steps.append(Notify(at=at, signal=signal, queue=queue, count=passes))
        steps += _storm(signal, queue, spurious, at)
        for effect in after:
            steps += self._carry_out(effect, at)
        return steps

    def chains(self, queue: int, available: int, used: int, now: float) -> tuple[list[Step], list[Step]]:
        """Return the steps for ``available`` chains that the driver made available in ``queue`` since its ring
        started, ``used`` of which the device has used: those before the notification in hand, and those after it."""
        steps, before, after = list[Step](), list[Effect](), list[Effect]()
        for armed in self._rules:
            trigger = armed.rule.trigger
            if not isinstance(trigger, AfterChains) or not self._is_queue(trigger.queue, queue):
                continue
            if available >= trigger.count and available > used and armed.strikes():
                steps.append(Struck(at=now, line=armed.rule.line, text=armed.rule.text))
                _sort_out(armed.rule.actions, before, after)
        for effect in before:
            steps += self._carry_out(effect, now)
        return steps, [step for effect in after for step in self._carry_out(effect, now)]

    def _is_meant(self, trigger: Trigger, piece: Piece) -> bool:
        return (
            isinstance(trigger, OnMessage)
            and piece.is_message
            and trigger.channel is piece.channel
            and trigger.request in (None, piece.request)
            and (trigger.index is None or self._is_queue(trigger.index, piece.queue))
        )

    def _is_queue(self, queue: Queue, number: int | None) -> bool:
        return number is not None and self._number(queue) == number

    def _number(self, queue: Queue) -> int | None:
        if isinstance(queue, int):
            return queue
        order = queue_order(self._features)
        return order.index(queue) if queue in order else None

    def needs_signal(self, signal: Signal, queue: int) -> bool:
        """Return whether a rule is about this notification, so that its descriptor has to be in the proxy's hand."""
        for rule in (armed.rule for armed in self._rules):
            match rule.trigger:
                case OnSignal(signal=about, queue=named) if about is signal:
                    if named is None or self._is_queue(named, queue):
                        return True
                case AfterChains(queue=named) if self._is_queue(named, queue):
                    return True
                case _:
                    pass
            storms = [action for action in rule.actions if isinstance(action, Storm)]
            if any(storm.signal is signal and self._is_queue(storm.queue, queue) for storm in storms):
                return True
        return False

    def awaits_chains(self) -> frozenset[int]:
        """Return the queues whose chains have to be counted, since a rule waits for them."""
        rules = [armed.rule.trigger for armed in self._rules if not armed.has_matched]
        queues = [self._number(trigger.queue) for trigger in rules if isinstance(trigger, AfterChains)]
        return frozenset(queue for queue in queues if queue is not None)

    def _carry_out(self, effect: Effect, at: float) -> list[Step]:
        match effect:
            case Disconnect(Side.BOTH):
                return [Close(at=at, side=Side.BOTH)]
            case Disconnect(side):
                return [Close(at=at, side=side), Close(at=at + LINGER, side=_OTHER[side])]
            case Storm(signal, queue, count):
                number = self._number(queue)
                return [] if number is None else _storm(signal, number, count, at)
            case Reset() | ChangeMemory():
                # Not into a message that is under way.
                at = max(at, self._free_at[Channel.FRONTEND_REQUESTS])
                self._free_at[Channel.FRONTEND_REQUESTS] = at
                return [SendReset(at=at) if isinstance(effect, Reset) else SendMemory(at=at)]


def _storm(signal: Signal, queue: int, count: int, at: float) -> list[Step]:
    return [Notify(at=at + SPURIOUS_GAP * (1 + number), signal=signal, queue=queue) for number in range(count)]


def _sort_out(actions: Sequence[Action], before: list[Effect], after: list[Effect]) -> list[Edit]:
    # Effects are carried out before what they came with, after it if the rule says `pass` first.
    effects = before
    edits = list[Edit]()
    for action in actions:
        match action:
            case Disconnect() | Reset() | ChangeMemory() | Storm():
                effects.append(action)
            case Pass():
                effects = after
            case _:
                edits.append(action)
    return edits
