"""Faults in configuration, statistics, features, and in what a device does when it is told to stop."""

import struct
from dataclasses import replace
from typing import Any

from host.balloon import virtio_balloon
from host.balloon.virtio_balloon import VirtioBalloon
from host.peers.helpers import Helpers
from host.ring.ring_service import RingService
from host.vhost_user import device_requests, feature_requests, ring_control, ring_requests
from host.virtqueue.split_virtqueue import SplitDeviceVirtqueue as Split
from protocol.balloon_config import BalloonConfig
from protocol.errors import VhostUserError, VirtqueueError
from protocol.vhost_user_codec import BadMessage
from scripts.check.broken.fault import fault, replaced


@fault("actual-lost", caught_by=("config-actual",))
def _() -> None:
    """What the driver writes into actual is not kept."""
    replaced(VirtioBalloon, "write_config", lambda original: lambda self, offset, data, **names: None)


@fault("num-pages-writable", caught_by=("config-write-whole-window",))
def _() -> None:
    """A driver can write every field of the configuration space."""

    def write(self: Any, offset: int, data: bytes, **names: bool) -> None:
        whole = bytearray(self.config.build())
        whole[offset : offset + len(data)] = data
        self.config = BalloonConfig.parse(bytes(whole))

    replaced(VirtioBalloon, "write_config", lambda original: write)


@fault("config-big-endian", caught_by=("config-actual",))
def _() -> None:
    """The fields of the configuration space are read big-endian."""

    def make(original: Any) -> Any:
        def read(self: Any, offset: int, length: int) -> bytes:
            whole = struct.pack(">4I", *struct.unpack("<4I", self.config.build()))
            return whole[offset : offset + length].ljust(length, b"\0")

        return read

    replaced(VirtioBalloon, "read_config", make)


@fault("config-offset-ignored", caught_by=("config-windows",))
def _() -> None:
    """A read at any offset gives the beginning of the space."""
    replaced(
        VirtioBalloon, "read_config", lambda original: lambda self, offset, length: original(self, 0, length) or b"\1"
    )


@fault("config-short", caught_by=("config-beyond",))
def _() -> None:
    """A read beyond eight bytes is answered with eight."""
    replaced(
        VirtioBalloon,
        "read_config",
        lambda original: lambda self, offset, length: original(self, offset, min(length, 8)),
    )


@fault("command-id-writable", caught_by=("hint-id-is-the-devices",))
def _() -> None:
    """A driver that writes the command id begins a round of hinting."""

    def make(original: Any) -> Any:
        def write(self: Any, offset: int, data: bytes, **names: bool) -> None:
            original(self, offset, data, **names)
            if offset == 8:
                self.hinting.command_id = int.from_bytes(data, "little")
                self.config = replace(self.config, free_page_hint_cmd_id=self.hinting.command_id)

        return write

    replaced(VirtioBalloon, "write_config", make)


@fault("command-id-random", caught_by=("hint-id-shown/split",))
def _() -> None:
    """The command id is 7 before any round."""

    def make(original: Any) -> Any:
        def read(self: Any, offset: int, length: int) -> bytes:
            self.config = replace(self.config, free_page_hint_cmd_id=7)
            data: bytes = original(self, offset, length)
            return data

        return read

    replaced(VirtioBalloon, "read_config", make)


@fault("statistics-at-once", caught_by=("statistics-first-buffer/split",))
def _() -> None:
    """The statistics buffer is given back at once, each time."""

    def make(original: Any) -> Any:
        def serve(self: Any, *rest: Any) -> Any:
            outcome = original(self, *rest)
            outcome.hold = False
            return outcome

        return serve

    replaced(VirtioBalloon, "serve", make)


@fault("statistics-unknown-tag-fatal", caught_by=("statistics-unknown-tags",))
def _() -> None:
    """A tag that is not known stops every queue, and no reset is asked for."""
    replaced(ring_control, "need_reset", lambda original: lambda session: ())
    stopped = [False]

    def parse(original: Any) -> Any:
        def parse_statistics(data: bytes) -> Any:
            found = original(data)
            stopped[0] = stopped[0] or found.unknown > 0
            return found

        return parse_statistics

    def serve(original: Any) -> Any:
        def serve_queue(self: Any, *rest: Any) -> Any:
            outcome = original(self, *rest)
            if stopped[0]:
                raise VirtqueueError("an unknown tag")
            return outcome

        return serve_queue

    replaced(virtio_balloon, "parse_statistics", parse)
    replaced(VirtioBalloon, "serve", serve)


@fault("statistics-overwritten", caught_by=("statistics-buffer-untouched",))
def _() -> None:
    """The used length of the statistics says that they were written."""

    def give_back(self: Any) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._ring.add_used(held.head, 10)
            self._files.signal_call()

    def make(original: Any) -> Any:
        def serve(self: Any, turn: Any, chain: Any, *rest: Any) -> bool:
            done: bool = original(self, turn, chain, *rest)
            if self._held is not None:
                self._give_back_held()
            return done

        return serve

    replaced(RingService, "_give_back_held", lambda original: give_back)
    replaced(RingService, "_serve_chain", make)


@fault("version-1-missing", caught_by=("features-offered",))
def _() -> None:
    """VERSION_1 is not offered."""
    replaced(feature_requests, "get_features", lambda original: _without(original, 1 << 32))


def _without(original: Any, bits: int) -> Any:
    def get_features(session: Any, message: Any) -> Any:
        features = yield from original(session, message)
        return features & ~bits

    return get_features


@fault("subset-refused", caught_by=("features-subset",))
def _() -> None:
    """A driver without EVENT_IDX is refused, although leaving it out is valid."""

    def make(original: Any) -> Any:
        def set_features(session: Any, message: Any) -> Any:
            if not message.payload >> 29 & 1:
                raise VhostUserError("EVENT_IDX is needed")
            yield from original(session, message)

        return set_features

    replaced(feature_requests, "set_features", make)


@fault("reset-ignored", caught_by=("reset-stops/split", "reset-stops/packed"))
def _() -> None:
    """A reset is acknowledged, and the device goes on."""
    nothing = lambda original: lambda session, message: iter(())  # noqa: E731
    replaced(device_requests, "reset_device", nothing)
    replaced(device_requests, "set_status", nothing)


@fault("actual-kept-over-reset", caught_by=("brought-up-again",))
def _() -> None:
    """A new driver finds what the last one of any session wrote into actual."""
    last = [0]

    def write(original: Any) -> Any:
        def write_config(self: Any, offset: int, data: bytes, **names: bool) -> None:
            original(self, offset, data, **names)
            last[0] = self.config.actual

        return write_config

    def read(original: Any) -> Any:
        def read_config(self: Any, offset: int, length: int) -> bytes:
            self.config = replace(self.config, actual=last[0])
            data: bytes = original(self, offset, length)
            return data

        return read_config

    replaced(VirtioBalloon, "write_config", write)
    replaced(VirtioBalloon, "read_config", read)


@fault("enable-ignored", caught_by=("ring-disabled/split", "ring-disabled/packed"))
def _() -> None:
    """SET_VRING_ENABLE 0 is acknowledged, and the ring is served on."""

    def make(original: Any) -> Any:
        def handle(session: Any, message: Any) -> Any:
            if message.payload.num:
                yield from original(session, message)

        return handle

    replaced(ring_requests, "set_vring_enable", make)


@fault("base-one-ahead", caught_by=("ring-stopped/split",))
def _() -> None:
    """GET_VRING_BASE answers one more than the next available index."""
    replaced(Split, "base", lambda original: property(lambda self: (self.next_avail + 1) & 0xFFFF))


@fault("used-index-from-base", caught_by=("ring-used-index-from-memory",))
def _() -> None:
    """The used index is taken from SET_VRING_BASE instead of the ring."""

    def make(original: Any) -> Any:
        def init(self: Any, *rest: Any, **names: Any) -> None:
            original(self, *rest, **names)
            self.next_used = self.next_avail

        return init

    replaced(Split, "__init__", make)


@fault("get-base-zero", caught_by=("base-comes-back", "stopped-and-started-again"))
def _() -> None:
    """GET_VRING_BASE is always answered with 0."""
    _base_told(lambda state, given: 0)


@fault("get-base-stale", caught_by=("ring-stopped/split",))
def _() -> None:
    """GET_VRING_BASE is answered with what SET_VRING_BASE has set."""
    _base_told(lambda state, given: given.get(state.index, 0))


def _base_told(change: Any) -> None:
    # Have `change(state, what was set by queue)` say which base is told.
    given: dict[int, int] = {}

    def setting(original: Any) -> Any:
        def set_vring_base(session: Any, message: Any) -> Any:
            given[message.payload.index] = message.payload.num
            yield from original(session, message)

        return set_vring_base

    def getting(original: Any) -> Any:
        def get_vring_base(session: Any, message: Any) -> Any:
            state = yield from original(session, message)
            return replace(state, num=change(state, given))

        return get_vring_base

    replaced(ring_requests, "set_vring_base", setting)
    replaced(ring_requests, "get_vring_base", getting)


@fault("fd-leak", caught_by=("descriptors-that-may-not-be", "replaced-descriptors", "session-leaves-nothing"))
def _() -> None:
    """Descriptors that came with messages are not closed."""
    replaced(Helpers, "close", lambda original: lambda self, fds: None)
    replaced(Helpers, "close_by", lambda original: lambda self, close: None)


@fault("fd-leak-refused", caught_by=("descriptors-that-may-not-be",))
def _() -> None:
    """Descriptors that a message may not have are not closed."""
    from host.connection import Connection  # which takes the handlers of requests as they are when it is imported

    def make(original: Any) -> Any:
        async def handle(self: Any, message: Any) -> None:
            await original(self, replace(message, fds=()) if isinstance(message, BadMessage) else message)

        return handle

    replaced(Connection, "_handle", make)
