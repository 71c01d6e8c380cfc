"""One session through the proxy: a front-end's connection and one to the back-end, and what goes between them."""

import asyncio
import contextlib
import heapq
import itertools
import os
import socket
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from host.descriptors.received_file import SIGNALS, FileKind
from protocol.process.events import EventLog
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import Channel, build_message
from scripts.check.faults.fault_plan import SessionPlan
from scripts.check.faults.fault_script import Side, Signal
from scripts.check.faults.passing.inlet import read_pieces
from scripts.check.faults.passing.message_pieces import NO_FILE, Piece, request_name
from scripts.check.faults.passing.open_file import OpenFile, to_send
from scripts.check.faults.passing.outlet import Outlet
from scripts.check.faults.passing.signal_relay import SignalRelay
from scripts.check.faults.ring_watch import RingWatch
from scripts.check.faults.session_facts import SessionFacts
from scripts.check.faults.steps import Close, Notify, Send, SendMemory, SendReset, Step, Struck
from scripts.check.recording.recorder import Recorder
from scripts.check.recording.words import STRUCK

WATCH_INTERVAL: Final = 0.001
"""Seconds between two looks at a ring whose chains are counted: a driver kicks only when it is asked to."""

_SIGNALS: Final = {FrontendRequest.SET_VRING_KICK: Signal.KICK, FrontendRequest.SET_VRING_CALL: Signal.CALL}
_STOPS: Final = (FrontendRequest.GET_VRING_BASE, FrontendRequest.GET_VRING_BASE_SKIP_DRAIN)


class ProxySession:
    """Session ``number`` between the sockets ``front_end`` and ``back_end``, which it owns."""

    def __init__(
        self,
        number: int,
        front_end: socket.socket,
        back_end: socket.socket,
        plan: SessionPlan,
        events: EventLog,
        recorder: Recorder | None,
    ) -> None:
        self._number = number
        self._plan = plan
        self._events = events
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._sockets = {Side.FRONT_END: front_end, Side.BACK_END: back_end}
        self._channel_sockets: list[socket.socket] = []
        self._outlets = dict[Channel, Outlet]()
        self._tasks = set[asyncio.Task[None]]()
        self._relays = dict[tuple[Signal, int], SignalRelay]()
        self._facts = SessionFacts(OpenFile)
        self._rings = RingWatch(self._facts)
        self._steps: list[tuple[float, int, Step]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = set[Side]()
        self._over = asyncio.Event()
        self._reason = ""

    async def run(self) -> str:
        """Pass everything until the session is over; return why it is."""
        streams = (
            (Side.FRONT_END, Channel.FRONTEND_REQUESTS, Side.BACK_END),
            (Side.BACK_END, Channel.BACKEND_REPLIES, Side.FRONT_END),
        )
        for _, channel, reader in streams:
            self._add_outlet(channel, self._sockets[reader])
        try:
            passing = [self._start(self._pass(self._sockets[side], channel, side)) for side, channel, _ in streams]
            self._start(self._end_after(passing))
            await self._over.wait()
        finally:
            await self._close()
        return self._reason

    def _start(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._finish(f"the proxy: {type(error).__name__}: {error}")

    def _add_outlet(self, channel: Channel, sock: socket.socket) -> None:
        def on_sent(data: bytes, fds: Sequence[int]) -> None:
            if self._recorder is not None:
                self._recorder.passed(channel, data, fds)

        self._outlets[channel] = Outlet(sock, on_sent)
        self._start(self._outlets[channel].run())

    async def _end_after(self, passing: "Sequence[asyncio.Task[None]]") -> None:
        await asyncio.wait(passing)
        self._finish("both sides closed their connections")

    def _finish(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._over.set()

    async def _pass(self, sock: socket.socket, channel: Channel, writer: Side) -> None:
        async for piece in read_pieces(sock, channel):
            self._schedule(self._plan.message(self._prepare(piece), self._loop.time()))
            del piece  # its descriptors are closed with the last reference
            await self._outlets[channel].has_room()
            if self._outlets[channel].is_broken and not self._closed:
                break
        if writer not in self._closed:
            self._schedule(self._plan.end(channel, self._loop.time()))
            self._reason = self._reason or f"the {writer.value} closed its connection"
            await self._all_sent(channel)
            await self._outlets[channel].end()

    async def _all_sent(self, channel: Channel) -> None:
        # Messages that are delayed arrive before the end of their stream.
        while late := [at for at, _, step in self._steps if isinstance(step, Send) and step.channel is channel]:
            await asyncio.sleep(max(late) - self._loop.time())
            self._run_due()

    # What goes with messages.

    def _prepare(self, piece: Piece) -> Piece:
        """Learn from a message that has arrived, and return it with the proxy's descriptors in it."""
        if piece.is_message:
            name = request_name(piece.channel, piece.request)
            self._emit("message", stream=piece.channel.value, request=name, bytes=len(piece.data), fds=len(piece.files))
        if piece.channel is not Channel.FRONTEND_REQUESTS or not piece.is_message:
            return piece
        self._facts.learn(piece)
        if piece.request in _SIGNALS and piece.queue is not None:
            return self._with_relay(piece, _SIGNALS[FrontendRequest(piece.request)], piece.queue)
        if piece.request in _STOPS and piece.queue is not None:
            self._stop_ring(piece.queue)
        if piece.request == FrontendRequest.SET_BACKEND_REQ_FD and len(piece.files) == 1:
            return self._with_channel(piece)
        return piece

    def _stop_ring(self, queue: int) -> None:
        self._rings.restart(queue)
        if (kick := self._relays.get((Signal.KICK, queue))) is not None:
            kick.pause()

    def _with_relay(self, piece: Piece, signal: Signal, queue: int) -> Piece:
        if signal is Signal.KICK:
            self._rings.restart(queue)
            if queue in self._plan.awaits_chains():
                self._start(self._count_chains(queue))
        if (before := self._relays.pop((signal, queue), None)) is not None:
            before.pause()
            before.close()
        (file, *_) = (*piece.files, None)
        if not isinstance(file, OpenFile) or int.from_bytes(piece.payload[:8], "little") & NO_FILE:
            return piece
        kind = file.kind()
        if kind is None or kind not in SIGNALS:
            return piece
        if kind is not FileKind.EVENTFD and not self._plan.needs_signal(signal, queue):
            self._emit("not_replaced", signal=signal.value, queue=queue, kind=kind.value)
            return piece
        relay = SignalRelay(signal, file, kind, lambda count: self._on_signal(signal, queue, count))
        self._relays[signal, queue] = relay
        relay.watch()
        return _with_files(piece, (relay.replacement, *piece.files[1:]))

    def _with_channel(self, piece: Piece) -> Piece:
        (file,) = piece.files
        if not isinstance(file, OpenFile) or file.kind() is not FileKind.SOCKET:
            return piece
        mine, theirs = socket.socketpair()
        front_end = socket.socket(fileno=os.dup(file.fd))
        self._channel_sockets += [mine, front_end]
        for channel, source, sink, side in (
            (Channel.BACKEND_REQUESTS, mine, front_end, Side.BACK_END),
            (Channel.FRONTEND_REPLIES, front_end, mine, Side.FRONT_END),
        ):
            self._add_outlet(channel, sink)
            self._start(self._pass(source, channel, side))
        return _with_files(piece, (OpenFile(theirs.detach()),))

    # Notifications and chains.

    def _on_signal(self, signal: Signal, queue: int, count: int) -> None:
        now = self._loop.time()
        before, after = self._observe(queue, now)
        self._schedule([*before, *self._plan.signal(signal, queue, now, count), *after])

    def _observe(self, queue: int, now: float) -> tuple[list[Step], list[Step]]:
        if queue not in self._plan.awaits_chains():
            return [], []
        count = self._rings.observe(queue)
        return ([], []) if count is None else self._plan.chains(queue, count.available, count.used, now)

    async def _count_chains(self, queue: int) -> None:
        while queue in self._plan.awaits_chains():
            await asyncio.sleep(WATCH_INTERVAL)
            before, after = self._observe(queue, self._loop.time())
            self._schedule([*before, *after])

    # Carrying steps out.

    def _schedule(self, steps: Sequence[Step]) -> None:
        for step in steps:
            heapq.heappush(self._steps, (step.at, next(self._order), step))
        self._run_due()

    def _run_due(self) -> None:
        now = self._loop.time()
        for step in self._plan.tick(now):
            heapq.heappush(self._steps, (step.at, next(self._order), step))
        while self._steps and self._steps[0][0] <= now:
            self._carry_out(heapq.heappop(self._steps)[2])
        times = [self._steps[0][0]] if self._steps else []
        if (deadline := self._plan.deadline) is not None:
            times.append(deadline)
        if self._timer is not None:
            self._timer.cancel()
        is_over = self._over.is_set()
        self._timer = self._loop.call_at(min(times), self._run_due) if times and not is_over else None

    def _carry_out(self, step: Step) -> None:
        match step:
            case Send(channel=channel, data=data, files=files):
                if channel in self._outlets:
                    self._outlets[channel].put(data, to_send(files))
            case Notify(signal=signal, queue=queue, count=count):
                if (relay := self._relays.get((signal, queue))) is not None:
                    relay.notify(count)
            case Close(side=side):
                self._disconnect(side)
            case SendReset():
                self._send_request(build_message(FrontendRequest.RESET_DEVICE), ())
            case SendMemory():
                for data, files in self._facts.memory_again():
                    self._send_request(data, files)
            case Struck(line=line, text=text):
                self._emit("fault", line=line, rule=text)
                if self._recorder is not None:
                    self._recorder.remark(STRUCK, line=line, rule=text)

    def _send_request(self, data: bytes, files: Sequence[OpenFile]) -> None:
        self._outlets[Channel.FRONTEND_REQUESTS].put(data, list(files))

    def _disconnect(self, side: Side) -> None:
        sides = {Side.FRONT_END, Side.BACK_END} if side is Side.BOTH else {side}
        self._closed |= sides
        self._reason = self._reason or f"a rule disconnected the {side.value}"
        for one in sides:
            with contextlib.suppress(OSError):
                self._sockets[one].shutdown(socket.SHUT_RDWR)
        if self._closed >= {Side.FRONT_END, Side.BACK_END}:
            self._finish(self._reason)

    def _emit(self, event: str, **fields: object) -> None:
        self._events.emit(event, session=self._number, **fields)

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for relay in self._relays.values():
            relay.take()  # a call that came just before the end
            relay.close()
        # Descriptors are closed with their last reference, and this object is part of a circle.
        self._relays.clear()
        self._facts.files.clear()
        self._steps.clear()
        self._outlets.clear()
        for sock in (*self._sockets.values(), *self._channel_sockets):
            sock.close()


def _with_files(piece: Piece, files: tuple[object, ...]) -> Piece:
    return Piece(channel=piece.channel, data=piece.data, files=files)
