"""A vhost-user session in memory: real messages as bytes, a real back-end, a shell that only notes what it is to do.

The shell keeps the account of file descriptors that the real one keeps: what no action takes over is closed.
"""

import re
from collections.abc import Generator
from typing import TypeVar, assert_never

from guest.vhost_user.frontend import Call, QueueSetup
from host.balloon.offered_features import OFFERED
from host.balloon.virtio_balloon import VirtioBalloon
from host.vhost_user import config_change, ring_control
from host.vhost_user.actions import (
    Action,
    ActionResult,
    AddRegion,
    DropMigration,
    DropRegion,
    EmitEvent,
    FinishState,
    ForgetDriver,
    KickRing,
    LoadState,
    LogRing,
    MakeInflightFile,
    ReplaceMemory,
    SaveState,
    SendBackendRequest,
    SetBackendChannel,
    SetInflightFile,
    SetLog,
    SetLogFile,
    SetVringFile,
    StartRing,
    StoppedRing,
    StopRing,
)
from host.vhost_user.backend import Reply, handle
from host.vhost_user.queue_numbers import AUTO, QueueNumbers
from host.vhost_user.session import Session
from protocol.errors import VhostUserError
from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import BadMessage, Channel, Message, MessageReader, build_message
from protocol.vhost_user_payloads import MemoryTable, Payload, VringAddress, VringFile, VringState

Result = TypeVar("Result")

MIB = 1 << 20
REGION = MemoryRegion(
    guest_address=GuestAddress(0x4000_0000), size=64 * MIB, user_address=UserAddress(0x7F00_0000_0000), mmap_offset=0
)
"""The memory that sessions announce unless a test says otherwise."""

RING_SIZE = 256

MADE_FD = 77
"""The descriptor of every inflight file that is made."""


def ring_address(index: int, *, base: int = REGION.user_address, flags: int = 0) -> VringAddress:
    """Return where the ring of queue ``index`` lies when its part of the memory begins at user address ``base``."""
    start = base + 0x10000 * index
    return VringAddress(
        index=index,
        flags=flags,
        descriptor=UserAddress(start),
        available=UserAddress(start + 0x4000),
        used=UserAddress(start + 0x8000),
    )


def queue_setup(index: int) -> QueueSetup:
    """Return the same ring for the front-end, with kick descriptor 10 + index and call descriptor 20 + index."""
    address = ring_address(index)
    return QueueSetup(
        size=RING_SIZE,
        descriptor=address.descriptor,
        available=address.available,
        used=address.used,
        kick=10 + index,
        call=20 + index,
    )


def describe(action: Action) -> str:
    """Return an action as a few words."""
    match action:
        case ReplaceMemory(table=table, fds=fds):
            return f"memory {[hex(region.guest_address) for region in table.regions]} fds {list(fds)}"
        case AddRegion(table=table, fd=fd):
            return f"add region {len(table.regions) - 1} fd {fd}"
        case DropRegion(number=number):
            return f"drop region {number}"
        case StartRing():
            told = ", tell the driver" if action.signal_first else ""
            queue = "unknown" if action.queue is None else action.queue.value
            return f"start {action.index} {queue} at {action.base}{told}"
        case StopRing(index=index):
            return f"stop {index}"
        case SetVringFile(request=request, index=index, fd=fd):
            return f"{request.name.removeprefix('SET_VRING_').lower()} {index} fd {fd}"
        case SetBackendChannel(fd=fd):
            return f"channel fd {fd}"
        case KickRing(index=index):
            return f"kick ring {index}"
        case SendBackendRequest(data=data):
            return f"send {data.hex()}"
        case EmitEvent(event="status" | "queue_numbers" as event, fields=fields):
            return f"{event} {fields.get('status', fields.get('dialect'))}"
        case EmitEvent(event="reset"):
            return "reset"
        case LogRing(index=index, log=log):
            return f"log {index} {'off' if log is None else [hex(address) for address in log]}"
        case SetLog(fd=fd, size=size, offset=offset):
            return f"dirty log fd {fd}, {size} bytes at {offset}"
        case SetLogFile(fd=fd):
            return f"log file fd {fd}"
        case MakeInflightFile(size=size):
            return f"make inflight file of {size}"
        case SetInflightFile(fd=fd, packed=packed):
            return f"inflight fd {fd}{' packed' if packed else ''}"
        case SaveState(fd=fd):
            return f"save fd {fd}"
        case LoadState(fd=fd):
            return f"load fd {fd}"
        case FinishState() | DropMigration() | ForgetDriver():
            return re.sub("(?=[A-Z])", " ", type(action).__name__).strip().lower()
        case EmitEvent(event="features", fields=fields):
            return f"features {fields['negotiated']:#x}"
        case EmitEvent(event=event, fields=fields):
            return f"{event} {fields.get('request', fields.get('queue'))}"
        case _:
            assert_never(action)


class Shell:
    """Gives messages to a back-end, performs its actions by noting them in ``done``, and gives its replies."""

    def __init__(self, offered: int = OFFERED, queue_numbers: str = AUTO) -> None:
        numbers = QueueNumbers.named(queue_numbers)
        self.session = Session(offered=offered, balloon=VirtioBalloon(), queue_numbers=numbers)
        """The back-end's record."""
        self.done: list[str] = []
        self.actions: list[Action] = []
        self.closed: list[int] = []
        self.running: dict[int, StartRing] = {}
        self.base: dict[int, int] = {}
        """Where each ring will have got to when it is stopped; without an entry it stays where it was started."""
        self.failing: set[type] = set()
        """Kinds of actions that the operating system refuses."""
        self.breaking: set[int] = set()
        """Rings that break while they are being stopped."""
        self._requests = MessageReader(Channel.FRONTEND_REQUESTS)
        self._replies = MessageReader(Channel.BACKEND_REPLIES)

    def take_done(self) -> list[str]:
        """Return what was done since this was last asked."""
        done, self.done = self.done, []
        return done

    def receive(self, data: bytes, fds: tuple[int, ...] = ()) -> bytes | None:
        """Handle one message; return the bytes of its reply."""
        self._requests.feed(data, fds)
        message = self._requests.next_message()
        assert message is not None
        return self.handle(message)

    def handle(self, message: Message | BadMessage) -> bytes | None:
        """Handle one message that was parsed already; return its reply."""
        unclaimed = set(message.fds)
        try:
            reply: Reply | None = self.drive(handle(self.session, message), unclaimed)
        finally:
            self.closed += sorted(unclaimed)
        return None if reply is None else reply.data

    def drive(self, effects: Generator[Action, ActionResult, Result], unclaimed: set[int]) -> Result:
        """Perform ``effects`` one by one as the real shell does; return what they return."""
        answer: ActionResult = None
        try:
            action = next(effects)
            while True:
                try:
                    answer = self._perform(action, unclaimed)
                except VhostUserError as error:
                    action = effects.throw(error)
                else:
                    action = effects.send(answer)
        except StopIteration as stop:
            result: Result = stop.value
            return result

    def _perform(self, action: Action, unclaimed: set[int]) -> ActionResult:
        if type(action) in self.failing:
            raise VhostUserError(f"{type(action).__name__} is refused by the test")
        self.actions.append(action)
        self.done.append(describe(action))
        match action:
            case StartRing(index=index):
                assert index not in self.running, "started twice"
                self.running[index] = action
            case StopRing(index=index):
                stopped = self.running.pop(index)
                return StoppedRing(self.base.pop(index, stopped.base), index in self.breaking)
            case ReplaceMemory(fds=fds):
                assert not self.running, "rings run on memory that is being replaced"
                unclaimed.difference_update(fds)
            case DropRegion():
                assert not self.running, "rings run on memory that is being dropped"
            case AddRegion(fd=fd) | SetBackendChannel(fd=fd) | SetLogFile(fd=fd) | SaveState(fd=fd) | LoadState(fd=fd):
                unclaimed.discard(fd)
            case LogRing(index=index):
                assert index in self.running, "a ring that does not run is being logged"
            case MakeInflightFile():
                return MADE_FD
            case SetInflightFile(fd=fd):
                assert not self.running, "rings run while their inflight file is being replaced"
                unclaimed.discard(fd)
            case SetLog() | FinishState() | DropMigration() | ForgetDriver():
                pass
            case SetVringFile(index=index, fd=fd):
                assert index not in self.running, "a running ring's descriptor is being replaced"
                if fd is not None:
                    unclaimed.discard(fd)
            case KickRing(index=index):
                assert index in self.running, "a kick for a ring that does not run"
            case SendBackendRequest():
                started = any(vring.started for vring in self.session.vrings)
                assert started, "a request of our own while all rings are stopped"
            case EmitEvent():
                pass
        return None

    def ring_broke(self, index: int) -> None:
        """Let the driver break the rules of a ring."""
        self.drive(ring_control.ring_broke(self.session, index), set())

    def change_config(self, **fields: int) -> bytes | None:
        """Set fields of the configuration space; return the request that tells the driver, if it is told."""
        sent = [action.data for action in config_change.change_config(self.session, **fields)]
        assert len(sent) <= 1
        return sent[0] if sent else None

    # -- as a front-end does --------------------------------------------------------------------------------------

    def ask(
        self, request: FrontendRequest, payload: Payload = None, fds: tuple[int, ...] = (), *, need_reply: bool = True
    ) -> Payload:
        """Send one request; return the payload of its reply, None without one."""
        reply = self.receive(build_message(request, payload, need_reply=need_reply), fds)
        return None if reply is None else self._payload(reply, request)

    def run(self, calls: Generator[Call, Payload, Result]) -> Result:
        """Run a front-end's generator to its end."""
        answer: Payload = None
        try:
            call = next(calls)
            while True:
                reply = self.receive(call.data, call.fds)
                assert (reply is not None) == call.reply_expected, call.request
                answer = None if reply is None else self._payload(reply, call.request)
                call = calls.send(answer)
        except StopIteration as stop:
            result: Result = stop.value
            return result

    def _payload(self, reply: bytes, request: FrontendRequest) -> Payload:
        assert reply[4:8] == bytes([5, 0, 0, 0]), "the flags of a reply are exactly 5"
        self._replies.feed(reply)
        message = self._replies.next_message()
        assert isinstance(message, Message)
        assert message.request is request
        return message.payload

    # -- shorthand for the ring messages --------------------------------------------------------------------------

    def ring(self, name: str, index: int, value: int | None = None) -> Payload:
        """Send the ring message SET_VRING_``name`` with an acknowledgement wanted; return what came back.

        ``value`` is the number that NUM, BASE and ENABLE carry, the file descriptor (None: no file, bit 8) of KICK,
        CALL and ERR, and the user address that ADDR's ring area begins at.
        """
        request = FrontendRequest[f"SET_VRING_{name}"]
        if name in ("KICK", "CALL", "ERR"):
            fds = () if value is None else (value,)
            return self.ask(request, VringFile(index, value is not None), fds)
        if name == "ADDR":
            return self.ask(request, ring_address(index, base=REGION.user_address if value is None else value))
        assert value is not None
        return self.ask(request, VringState(index, value))

    def memory(self, *regions: MemoryRegion, first_fd: int = 5) -> Payload:
        """Send SET_MEM_TABLE with one made-up descriptor for each region."""
        fds = tuple(range(first_fd, first_fd + len(regions)))
        return self.ask(FrontendRequest.SET_MEM_TABLE, MemoryTable(regions), fds)


BIT_30 = 1 << 30
FEATURES = 0x1_7000_0024
"""VERSION_1, bit 30, EVENT_IDX, INDIRECT_DESC, PAGE_REPORTING, DEFLATE_ON_OOM."""

PROTOCOL_FEATURES = 0x229
"""MQ, REPLY_ACK, BACKEND_REQ, CONFIG: what User Mode Linux has in common with the back-end."""


def negotiated(*, bit_30: bool = True) -> Shell:
    """Return a shell whose session is negotiated and has its memory."""
    shell = Shell()
    assert shell.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES) == 0
    assert shell.ask(FrontendRequest.SET_FEATURES, FEATURES if bit_30 else FEATURES & ~BIT_30) == 0
    assert shell.memory(REGION) == 0
    shell.take_done()
    return shell


def set_up(shell: Shell, index: int, *, base: int = 0) -> None:
    """Configure, start and enable queue ``index``; forget the actions."""
    shell.ring("NUM", index, 256)
    shell.ring("BASE", index, base)
    shell.ring("ADDR", index)
    shell.ring("CALL", index, 20 + index)
    shell.ring("KICK", index, 10 + index)
    assert shell.ring("ENABLE", index, 1) == 0
    assert index in shell.running
    shell.take_done()
