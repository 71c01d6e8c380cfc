"""A worker process: it serves the sessions that the supervisor gives it, and tells it all that happens."""

import asyncio
import contextlib
import json
import logging
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from host.configuration.device_options import parse_device_options
from host.daemon_options import DaemonOptions
from host.inhibition.inhibition import Sign
from host.memory.sigbus import guard_mappings
from host.peers.fd_limit import raise_fd_limit
from host.qmp.qmp import Arguments, Request
from host.recording.recording_relay import RelayedRecording
from host.sandbox.sandbox import confine
from host.sessions import Sessions
from host.supervision.link import Link
from host.supervision.packets import (
    Kind,
    Legacy,
    Packet,
    answer_packets,
    parse_legacy,
    split_length,
    split_number,
    with_number,
)
from host.supervision.process_title import set_title
from host.supervision.supervised_session import SupervisedSession
from host.supervision.zygote import Run
from protocol.errors import BalloonError
from protocol.process.command_line import DISTRIBUTION
from protocol.process.events import EventLog
from protocol.process.log_lines import is_journal, log_to_standard_error
from protocol.process.standard_error import drain_standard_error, queued_standard_error
from protocol.process.system_log import log_to_syslog

log = logging.getLogger(__name__)

EVENTS_WAITING_MAX = 4 << 20
"""Bytes of events that may wait for the supervisor; those beyond are lost."""

_EVENTS_AT_ONCE = 32 << 10

TITLE_DELAY = 0.05
"""Seconds until a change of machines is in the title of the process."""

STACK = 1 << 20
"""Bytes of a thread's stack: there may be some hundred threads, and all their stacks count as memory of the process."""


class WakingSelector(selectors.EpollSelector):
    """Calls ``on_wake`` when the event loop goes on, before it does anything: once after each time that it was set."""

    on_wake: Callable[[], None] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready."""
        ready = super().select(timeout)
        if self.on_wake is not None and (ready or timeout):
            wake, self.on_wake = self.on_wake, None
            wake()
        return ready


class _EventStream:
    """Passes lines of events on to the supervisor, those of one turn of the event loop together."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lines: list[str] = []
        self._length = 0
        self._lost = 0
        self._loop = asyncio.get_running_loop()

    def write(self, line: str) -> None:
        """Take one line."""
        if self._link.waiting > EVENTS_WAITING_MAX:
            self._lost += 1
            return
        if not self._lines:
            self._loop.call_soon(self.flush_now)
        self._lines.append(line)
        self._length += len(line)
        if self._length > _EVENTS_AT_ONCE:
            self.flush_now()

    def flush(self) -> None:
        """Do nothing: lines are passed on at the end of the event loop's turn."""

    def flush_now(self) -> None:
        """Pass on all lines."""
        lines, self._lines, self._length = self._lines, [], 0
        if lines:
            self._link.send(Packet(Kind.EVENTS, 0, "".join(lines).encode()))

    def close(self) -> None:
        """Pass on all lines."""
        self.flush_now()


class _Notices:
    """Passes on what clients of the control socket are to be told."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def emit(self, event: str, data: Mapping[str, Any]) -> None:
        """Send an event to every client."""
        self._send("emit", event, dict(data))

    def balloon_changed(self, vm: int, logical_bytes: int) -> None:
        """Take note of a new balloon size."""
        self._send("balloon_changed", vm, logical_bytes)

    def forget(self, vm: int) -> None:
        """Take note that a virtual machine has gone."""
        self._send("forget", vm)

    def _send(self, *call: object) -> None:
        self._link.send(Packet(Kind.NOTICE, 0, json.dumps(call).encode()))


class Worker:
    """One worker, from :meth:`run` to the end of the supervisor or its word to stop."""

    def __init__(
        self, number: int, options: DaemonOptions, version: Mapping[str, Any], wakes: WakingSelector, *, events: bool
    ) -> None:
        self._number = number
        self._wakes = wakes
        self._options = options
        self._version = version
        self._events = events
        self._stop = asyncio.Event()
        self._journals: dict[int, SupervisedSession] = {}
        self._files: dict[int, dict[int, int]] = {}
        self._without_room: set[int] = set()
        self._alone = False
        self._recording: RelayedRecording | None = None
        self._title_timer: asyncio.TimerHandle | None = None
        self._questions: set[asyncio.Task[None]] = set()

    async def run(self, end: socket.socket) -> None:
        """Serve over ``end`` until the supervisor says to stop, or has gone."""
        self._link = link = Link(end, self._on_packet, self._stop.set)
        self._stream = stream = _EventStream(link)
        log_of_events = EventLog(stream if self._events else None, time.monotonic)
        try:
            self._sessions = sessions = Sessions(self._options, log_of_events, None, self._version)
        except (RuntimeError, OSError, BalloonError):
            link.close()  # what comes is another worker's
            raise
        sessions.notices = _Notices(link)
        link.send(Packet(Kind.HELLO, 0, with_number(os.getpid(), b"")))
        self._show_title()
        await self._stop.wait()
        await sessions.finish()
        if self._recording is not None:
            self._recording.close()
        log_of_events.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await link.flushed()
        if sessions.held_up:
            # What a front-end holds up comes back when that one pleases, and what it works on stays open to the end.
            drain_standard_error()
            os._exit(0)

    def _on_packet(self, packet: Packet) -> None:
        if not packet.complete:
            self._without_room.add(packet.vm)
        match packet.kind:
            case Kind.ATTACH | Kind.TAKE_OVER if packet.vm in self._without_room:
                self._leave_it(packet)
            case Kind.FILES if packet.vm in self._without_room:
                _close(packet.fds)
            case Kind.ATTACH:
                self._serve(packet, None, packet.body)
            case Kind.FILES:
                self._files.setdefault(packet.vm, {}).update(zip(json.loads(packet.body), packet.fds, strict=True))
            case Kind.TAKE_OVER:
                device, legacy = split_length(packet.body)
                self._serve(packet, parse_legacy(legacy), device)
            case Kind.RECORDING if packet.complete:
                self._recording = RelayedRecording(packet.fds[0])
                self._sessions.record = self._recording.write
            case Kind.ALONE:
                self._alone = True
            case Kind.SENT:
                if (journal := self._journals.get(packet.vm)) is not None:
                    journal.sent(packet.body.decode())
            case Kind.COMMAND | Kind.STATUS | Kind.SAMPLES:
                number, body = split_number(packet.body)
                task = asyncio.create_task(self._answer(number, self._find_answer(packet.kind, body)))
                self._questions.add(task)
                task.add_done_callback(self._questions.discard)
            case Kind.SIGNS:
                for pid, signs in json.loads(packet.body):
                    self._sessions.take_signs(pid, Sign(signs))
            case Kind.PING:
                self._link.send(Packet(Kind.ANSWER, 0, packet.body))
                self._wakes.on_wake = partial(self._link.send, Packet(Kind.AWAKE))
            case Kind.STOP:
                self._stop.set()
            case _:
                log.error("worker %d: a packet of kind %d", self._number, packet.kind)

    def _serve(self, packet: Packet, legacy: Legacy | None, device: bytes) -> None:
        files = self._files.pop(packet.vm, {})
        tell = self._stream.flush_now
        journal = SupervisedSession(packet.vm, self._link, legacy, files, shared=not self._alone, tell_events=tell)
        self._journals[packet.vm] = journal
        sock = socket.socket(fileno=packet.fds[0])
        task = self._sessions.serve(packet.vm, sock, journal, device=parse_device_options(device))
        task.add_done_callback(lambda _: self._on_end(packet.vm))
        self._change_title()

    def _leave_it(self, packet: Packet) -> None:
        # The kernel has dropped descriptors of the machine: this process has as many open as it may have.
        _close((*packet.fds, *self._files.pop(packet.vm, {}).values()))
        self._without_room.discard(packet.vm)
        end = "its session ends" if self._alone else "another worker serves it"
        log.error("vm %d: no descriptors are left in worker %d for it, %s", packet.vm, self._number, end)
        self._link.send(Packet(Kind.ENDED if self._alone else Kind.LEFT, packet.vm))

    def _on_end(self, vm: int) -> None:
        del self._journals[vm]
        self._change_title()

    async def _command(self, body: bytes) -> bytes:
        name, arguments, reply = json.loads(body)
        answer = await self._sessions.perform(Request(name=name, arguments=Arguments(arguments), reply=reply))
        if not name.startswith("query-"):
            for vm, journal in list(self._journals.items()):
                if arguments.get("vm", vm) == vm:
                    await journal.kept()
        return answer

    async def _find_answer(self, kind: Kind, body: bytes) -> bytes:
        match kind:
            case Kind.STATUS:
                return json.dumps(await self._sessions.status()).encode()
            case Kind.SAMPLES:
                return json.dumps(await self._sessions.query("samples")).encode()
            case _:
                return await self._command(body)

    async def _answer(self, number: int, question: Awaitable[bytes]) -> None:
        body = await question
        for journal in self._journals.values():
            journal.flush()  # what was answered holds whatever becomes of this process
        for packet in answer_packets(number, body):
            self._link.send(packet)

    def _change_title(self) -> None:
        # Once for a crowd that comes and goes.
        if self._title_timer is None:
            self._title_timer = asyncio.get_running_loop().call_later(TITLE_DELAY, self._show_title)

    def _show_title(self) -> None:
        self._title_timer = None
        vms = ", ".join(map(str, sorted(self._journals))) or "none"
        set_title(f"vub worker {self._number}", f"{DISTRIBUTION}: worker {self._number} (vm {vms})")


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def confine_worker(options: DaemonOptions, version: Mapping[str, Any], *, events: bool) -> Run:
    """Give up what no worker of a daemon with these options needs, in a process that was forked to become one. Return
    what has it be one."""
    raise_fd_limit()  # while there is one thread, and the privilege
    if options.syslog:
        log_to_syslog(DISTRIBUTION)  # before: a confined process makes no sockets
    left = confine([Path("/proc"), Path(sys.prefix), Path(sys.base_prefix), Path(__file__).resolve().parent.parent])
    return partial(_run_worker, options=options, version=version, events=events, left=left)


def _run_worker(
    number: int,
    end: socket.socket,
    *,
    options: DaemonOptions,
    version: Mapping[str, Any],
    events: bool,
    left: Sequence[str],
) -> None:
    journal = is_journal(sys.stderr, os.environ)
    with queued_standard_error(DISTRIBUTION):
        if not options.syslog:
            log_to_standard_error(DISTRIBUTION, options.log_format, journal=journal)
        threading.stack_size(STACK)
        sys.setswitchinterval(0.0001)  # see host/command.py
        if left and number == 1:
            log.warning("workers keep access to what this kernel cannot deny: %s", ", ".join(left))
        guard_mappings()
        wakes = WakingSelector()
        worker = Worker(number, options, version, wakes, events=events)
        try:
            with asyncio.Runner(loop_factory=partial(asyncio.SelectorEventLoop, wakes)) as runner:
                runner.run(worker.run(end))
        except (RuntimeError, OSError, BalloonError) as error:  # no thread, descriptor or memory is left
            log.error("worker %d ends: %s", number, error)
        if sys.stderr is not None:
            sys.stderr.flush()
