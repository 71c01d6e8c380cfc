"""Faults in what a device shows of its size, and in how it goes on after a reset, a pause, or a second SET_FEATURES."""

from dataclasses import replace
from typing import Any

from host.balloon import virtio_balloon
from host.balloon.virtio_balloon import VirtioBalloon
from host.ring import ring_service
from host.vhost_user import config_change, device_requests, feature_requests, ring_requests
from protocol.errors import VhostUserError, VirtqueueError
from protocol.virtio import PROTOCOL_FEATURES
from protocol.virtio_balloon import BalloonQueue
from scripts.check.broken.fault import fault, replaced


@fault("target-not-told", caught_by=("config-resize-tells", "target-while-paused/split"))
def _() -> None:
    """num_pages changes, and the driver is not told."""
    for module in (config_change, device_requests, ring_requests):
        if hasattr(module, "notify_config_change"):
            replaced(module, "notify_config_change", lambda original: lambda session: iter(()))


@fault("target-lost-in-pause", caught_by=("target-while-paused/split", "target-while-paused/packed"))
def _() -> None:
    """A size that is asked for while all rings are stopped is forgotten."""

    def make(original: Any) -> Any:
        def change_config(session: Any, **fields: int) -> Any:
            if any(vring.started for vring in session.vrings):
                yield from original(session, **fields)

        return change_config

    replaced(config_change, "change_config", make)


@fault("target-lost-by-reset", caught_by=("target-after-reset",))
def _() -> None:
    """A reset of the device sets num_pages to 0."""

    was_reset = [False]

    def reset(original: Any) -> Any:
        def reset_device(session: Any, message: Any) -> Any:
            was_reset[0] = True
            yield from original(session, message)

        return reset_device

    def read(original: Any) -> Any:
        def read_config(self: Any, offset: int, length: int) -> bytes:
            if was_reset[0]:
                self.config = replace(self.config, num_pages=0)
            data: bytes = original(self, offset, length)
            return data

        return read_config

    replaced(device_requests, "reset_device", reset)
    replaced(VirtioBalloon, "read_config", read)


@fault("features-once", caught_by=("features-again/split", "features-again/packed"))
def _() -> None:
    """Features are refused after they were accepted once."""

    known: list[Any] = []

    def make(original: Any) -> Any:
        def set_features(session: Any, message: Any) -> Any:
            if any(one is session for one in known):
                raise VhostUserError("features were set before")
            known.append(session)
            yield from original(session, message)

        return set_features

    replaced(feature_requests, "set_features", make)


@fault("bit-30-disables", caught_by=("poison-without-bit-30/split", "poison-without-bit-30/packed"))
def _() -> None:
    """A second SET_FEATURES without bit 30 leaves the rings disabled, as they are with it."""
    replaced(
        feature_requests,
        "set_features",
        lambda original: (
            lambda session, message: original(session, replace(message, payload=message.payload | PROTOCOL_FEATURES))
        ),
    )


@fault("uninvited-served", caught_by=("report-not-negotiated/split", "report-not-negotiated/packed"))
def _() -> None:
    """What is on a queue whose feature was not accepted is taken for a report."""

    def make(original: Any) -> Any:
        def serve(self: Any, queue: Any, *rest: Any) -> Any:
            return original(self, BalloonQueue.REPORTING if queue is None else queue, *rest)

        return serve

    replaced(VirtioBalloon, "serve", make)


@fault("failed-discard-breaks-ring", caught_by=("report-sealed-memory/split", "report-sealed-memory/packed"))
def _() -> None:
    """A discard that fails breaks the ring, and its chain is not given back."""

    def make(original: Any) -> Any:
        def punch(fd: int, offset: int, length: int) -> int:
            if original(fd, offset, length):
                raise VirtqueueError("a discard failed")
            return 0

        return punch

    replaced(ring_service, "punch_hole", make)


@fault("discarded-once", caught_by=("inflate-again/split", "inflate-again/packed"))
def _() -> None:
    """A range that was discarded before is not discarded again."""
    done: set[tuple[int, int]] = set()

    def make(original: Any) -> Any:
        def punch(fd: int, offset: int, length: int) -> int:
            if (offset, length) in done:
                return 0
            done.add((offset, length))
            result: int = original(fd, offset, length)
            return result

        return punch

    replaced(ring_service, "punch_hole", make)


@fault("page-zero-ends-inflate", caught_by=("inflate-number-zero",))
def _() -> None:
    """The number 0 ends an array of page numbers, as a terminator does."""

    def make(original: Any) -> Any:
        def read(*rest: Any) -> list[int]:
            found: list[int] = original(*rest)
            return found[: found.index(0)] if 0 in found else found

        return read

    replaced(virtio_balloon, "_read_pfns", make)


@fault("empty-inflate-kept", caught_by=("inflate-empty/split", "inflate-empty/packed"))
def _() -> None:
    """An inflate of no bytes is never given back."""

    def make(original: Any) -> Any:
        def serve(self: Any, queue: Any, chain: Any, *rest: Any) -> Any:
            outcome = original(self, queue, chain, *rest)
            outcome.hold |= queue is BalloonQueue.INFLATE and not any(length for _, length in chain.readable)
            return outcome

        return serve

    replaced(VirtioBalloon, "serve", make)


@fault("inflate-beside-the-memory", caught_by=("inflate-buffer-outside/split",))
def _() -> None:
    """Page numbers that are not in the memory are read as those of its first data page."""

    def make(original: Any) -> Any:
        def read(buffers: Any, plan: Any, read_guest: Any) -> list[int]:
            try:
                found: list[int] = original(buffers, plan, read_guest)
            except VirtqueueError:
                return [0x14_1000 + number for number in range(16)]
            return found

        return read

    replaced(virtio_balloon, "_read_pfns", make)
