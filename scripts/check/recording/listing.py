"""The lines that explain a record: when, who, what it means, and the clauses that it touches."""

import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Final

from protocol.recording.records import (
    DISCARDED,
    TAKEN_OVER,
    Header,
    Lost,
    Noise,
    PutBack,
    RangeFate,
    Record,
    RecordedDescriptor,
    Remark,
    RingBroken,
    RingStart,
    RingStop,
    SessionBegin,
    SessionEnd,
    Signal,
    TakenChain,
    UsedChain,
    WireMessage,
)
from protocol.units import format_size
from protocol.vhost_user import HeaderFlag
from protocol.virtio_ring import VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE
from scripts.check.recording import words
from scripts.check.recording.clauses_touched import CLAUSES_OF_QUEUE, clauses_of, clauses_of_used
from scripts.check.recording.judge import Fault
from scripts.check.recording.options import LISTED_MAX
from scripts.check.recording.words import ReadMessage, is_from_back_end, say, say_file

WIDTH: Final = 80
_INDENT: Final = " " * 18

_REPEATED: Final = ("status", "features")
"""Remarks that say what the message before them said."""

_SIGNALS: Final = {"kick": "the driver kicks", "call": "the device interrupts", "err": "the device signals an error"}


def _wrap(text: str, indent: str = _INDENT) -> Iterator[str]:
    below = _INDENT + "  "
    yield from textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=below, break_on_hyphens=False)


def _head(offset: float, session: int, mark: str, text: str, clauses: tuple[str, ...] = ()) -> Iterator[str]:
    where = f"{offset:11.6f} {f'#{session}' if session else '':>4} {mark} "
    tail = f"  [{' '.join(clauses)}]" if clauses else ""
    line = where + text + tail
    if len(line) <= WIDTH:
        yield line
        return
    lines = textwrap.wrap(text, WIDTH, initial_indent=where, subsequent_indent=_INDENT + "  ", break_on_hyphens=False)
    if tail and len(lines[-1]) + len(tail) <= WIDTH:
        lines[-1] += tail
    elif tail:
        lines += _wrap(tail.strip())
    yield from lines


class Listing:
    """Makes the lines of records. ``listed_max`` is how many descriptors of a chain are shown, None for all."""

    def __init__(self, listed_max: int | None = LISTED_MAX) -> None:
        self._listed_max = listed_max
        self._begin = 0.0
        self._starts: dict[tuple[int, int], RingStart] = {}

    def anew(self) -> "Listing":
        """Return a listing for the next run."""
        return Listing(self._listed_max)

    def lines(self, record: Record, read: ReadMessage | None) -> Iterator[str]:
        """Yield what ``record`` means; ``read`` is what a message reads as."""
        if isinstance(record, Header):
            self._begin = record.t
            yield f"recorded by {record.program}"
            return
        if isinstance(record, RingStart):
            self._starts[record.session, record.ring] = record
        if isinstance(record, WireMessage):
            assert read is not None
            yield from self._message(record, read)
            return
        if isinstance(record, Remark) and record.event in _REPEATED:
            return
        text, clauses = self._step(record)
        yield from _head(record.t - self._begin, record.session, "*", text, clauses)
        if isinstance(record, TakenChain):
            yield from self._chain(record)

    def sentence(self, record: Record) -> str:
        """Return what ``record``, which is not a message, means in one sentence."""
        if isinstance(record, RingStart):
            self._starts[record.session, record.ring] = record
        return self._step(record)[0]

    def _message(self, message: WireMessage, read: ReadMessage) -> Iterator[str]:
        reply = message.stream.carries_replies
        words = read.name + (" reply" if reply else ", wants a reply" * bool(message.flags & HeaderFlag.NEED_REPLY))
        clauses = () if reply or read.request is None else clauses_of(read.request)
        arrow = "<" if is_from_back_end(message.stream) else ">"
        yield from _head(message.t - self._begin, message.session, arrow, words, clauses)
        if text := say(message, read):
            yield from _wrap(text)
        if message.files:
            yield from _wrap("with " + ", ".join(map(say_file, message.files)))

    def _step(self, record: Record) -> tuple[str, tuple[str, ...]]:
        match record:
            case SessionBegin(pid=pid, side=side):
                peer = f"process {pid}" if pid else "a peer"
                return f"session begins with {peer}, recorded by the {side}", ()
            case SessionEnd(reason=reason):
                return f"session ends: {reason}", ()
            case Noise(stream=stream, data=data):
                return f"{stream.value}: {len(data)} bytes that are no message: {data[:24].hex(' ', 4)}", ("V-1",)
            case RingStart():
                return _say_start(record), ()
            case RingStop(ring=ring, base=base):
                return f"{self._title(record.session, ring)} stops, and would go on at {base:#x}", ()
            case RingBroken(ring=ring, reason=reason):
                return f"{self._title(record.session, ring)} is broken: {reason}", ()
            case Signal(ring=ring, what=what):
                return f"{self._title(record.session, ring)}: {_SIGNALS.get(what, what)}", ()
            case TakenChain():
                return self._say_chain(record), CLAUSES_OF_QUEUE.get(record.queue, ())
            case UsedChain():
                return self._say_used(record)
            case PutBack(ring=ring, head=head):
                return f"{self._title(record.session, ring)}: chain {head} is put back", ()
            case Remark(event=words.CASE, fields={"name": name, "says": says}):
                return f"case {name}: {says}", ()
            case Remark(event=words.VERDICT, fields={"name": name, "verdict": verdict, "reason": reason}):
                return f"{verdict} {name}" + (f": {reason}" if reason else ""), ()
            case Remark(event=words.STRUCK, fields={"line": line, "rule": rule}):
                return f"the proxy carries out line {line} of its script: {rule}", ()
            case Remark(event=event) if event == TAKEN_OVER:
                return "another process of the daemon goes on with the session", ()
            case Remark(event=event, fields=fields):
                return f"{event}: " + ", ".join(f"{name} {value}" for name, value in fields.items()), ()
            case Lost(full=True):
                return "the recording reached its limit here and stops", ()
            case Lost(count=count):
                return f"{count} records are missing here", ()
            case _:
                raise AssertionError(record)

    def _title(self, session: int, ring: int) -> str:
        start = self._starts.get((session, ring))
        return f"queue {ring}" + (f" ({start.queue})" if start is not None and start.queue else "")

    def _say_chain(self, chain: TakenChain) -> str:
        number = len(chain.descriptors) + len(chain.indirect) + chain.left_out
        words = [f"{number} descriptor{'s' * (number != 1)}"]
        fates = Counter(fate for _, _, fate in chain.ranges)
        for fate, ranges in fates.items():
            size = sum(length for _, length, each in chain.ranges if each == fate)
            words.append(f"{ranges} range{'s' * (ranges != 1)} of {format_size(size)} {_say_fate(fate)}")
        if chain.ranges_left_out:
            words.append(f"{chain.ranges_left_out} more ranges")
        words += [chain.note] * bool(chain.note) + ["held"] * chain.held
        return f"{self._title(chain.session, chain.ring)}: chain {chain.head}, {', '.join(words)}"

    def _say_used(self, used: UsedChain) -> tuple[str, tuple[str, ...]]:
        title = self._title(used.session, used.ring)
        start = self._starts.get((used.session, used.ring))
        text = f"{title}: chain {used.head} is given back, length {used.length}"
        if start is None:
            return text, ()
        why = ""
        if used.event >= 0:
            what = f"the driver's event is {used.event:#x}" if start.packed else f"used_event is {used.event}"
            moved = f"{used.old:#x} to {used.new:#x}" if start.packed else f"{used.old} to {used.new}"
            why = f": used went from {moved}, {what}"
        elif used.flags >= 0:
            why = f": avail.flags is {used.flags}"
        if used.old < 0 and not used.call:
            return text, clauses_of_used(packed=start.packed, event_idx=start.event_idx)  # the driver's side recorded
        call = "a call" if used.call else "no call"
        return f"{text}, {call}{why}", clauses_of_used(packed=start.packed, event_idx=start.event_idx)

    def _chain(self, chain: TakenChain) -> Iterator[str]:
        start = self._starts.get((chain.session, chain.ring))
        packed = start is not None and start.packed
        fates = {(address, length): fate for address, length, fate in chain.ranges}
        shown: set[tuple[int, int]] = set()
        rows = [("", each) for each in chain.descriptors] + [("table ", each) for each in chain.indirect]
        limit = len(rows) if self._listed_max is None else self._listed_max
        for where, each in rows[:limit]:
            place = (each.address, each.length)
            fate = fates.get(place, "") if each.flags & VIRTQ_DESC_F_INDIRECT == 0 else ""
            shown.add(place)
            yield from _wrap(_say_descriptor(where, each, packed=packed) + (f", {_say_fate(fate)}" * bool(fate)))
        if (more := len(rows) - limit + chain.left_out) > 0:
            yield f"{_INDENT}and {more} more descriptors"
        others = [each for each in chain.ranges if each[:2] not in shown]
        for other in others[:limit]:
            yield from _wrap(_say_range(other))
        if len(others) > limit:
            yield f"{_INDENT}and {len(others) - limit} more ranges"


def fault_lines(fault: Fault, indent: str = "               !! ", count: int = 1) -> Iterator[str]:
    """Yield the lines that mark a fault below the record that shows it, or in a summary, where it was seen ``count``
    times."""
    times = f", {count} times" if count > 1 else ""
    below = " " * (len(indent) + 2)
    text = fault_text(fault) + times
    yield from textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=below, break_on_hyphens=False)


def fault_text(fault: Fault) -> str:
    """Return a fault with its place and its clauses."""
    clauses = f" [{' '.join(fault.clauses)}]" if fault.clauses else ""
    return fault.text + (f" ({fault.at})" if fault.at else "") + clauses


def _say_start(start: RingStart) -> str:
    features = {"event index": start.event_idx, "indirect": start.indirect_desc, "in order": start.in_order}
    names = [name for name, on in features.items() if on]
    title = f"queue {start.ring}" + (f" ({start.queue})" if start.queue else " (of no known meaning)")
    shape = f"{'packed' if start.packed else 'split'}, {start.size} entries, from {start.base:#x}"
    return f"{title} is served: {', '.join([shape, *names])}"


def _say_fate(fate: str) -> str:
    return fate if fate == DISCARDED else f"kept ({fate.replace('_', ' ')})"


def _say_range(fate: RangeFate) -> str:
    return f"range {fate.address:#x} + {format_size(fate.length)}: {_say_fate(fate.fate)}"


def _say_descriptor(where: str, each: RecordedDescriptor, *, packed: bool) -> str:
    words = [f"{where}[{each.place}] {each.address:#x} + {format_size(each.length)}"]
    if each.flags & VIRTQ_DESC_F_INDIRECT:
        words.append("an indirect table")
    else:
        words.append("device writes" if each.flags & VIRTQ_DESC_F_WRITE else "device reads")
    if each.flags & VIRTQ_DESC_F_NEXT:
        words.append("one follows" if packed else f"next {each.link}")
    if packed and not where:
        words.append(f"id {each.link}")
    return ", ".join(words)
