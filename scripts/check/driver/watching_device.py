"""Our daemon, which writes down what a driver does: ``python -m scripts.check.driver.watching_device FILE OPTION...``.

It discards what a report or an inflate names, waits, and looks whether any of it is there again before it gives the
chain back: a driver that uses such a page loses data with a slower device. It also looks at rings that were not kicked.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TextIO

from host.__main__ import main as serve
from host.balloon.virtio_balloon import VirtioBalloon
from host.memory.discard_plan import DiscardPlan
from host.ring.ring_service import RingService
from host.ring.service_state import ServiceState
from host.vhost_user import feature_requests
from protocol.memory import PAGE_SIZE, FileRange
from protocol.packed_ring import AVAIL_USED
from protocol.process.command_line import run_command
from scripts.check.broken.all_faults import ALL_FAULTS
from scripts.check.broken.fault import replaced
from scripts.check.driver.observation import DATA_MAX, SeenChain

HOLD_SECONDS: Final = 0.02
"""Seconds for which a chain that gave pages away is held. A driver that breaks the rule uses one within that time."""

LOOK_SECONDS: Final = 0.1
"""Seconds between looks at rings that were not kicked."""

WATCHED: Final = ("reporting", "inflate")


class Watch:
    """Writes what it is shown to ``stream``, from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._local = threading.local()
        self._services: list[RingService] = []
        self._unkicked: dict[int, int] = {}
        self._ballooned: set[tuple[int, int]] = set()

    def write(self, kind: str, **fields: Any) -> None:
        """Write one line."""
        self.write_line(json.dumps({"kind": kind, **fields}))

    def write_line(self, line: str) -> None:
        """Write one line that is JSON."""
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()

    # -- what the daemon's code is replaced with --------------------------------------------------------------------

    def serve(self, original: Any) -> Any:
        """Note each chain before the device looks at it."""

        def serve(balloon: Any, queue: Any, chain: Any, memory: Any, read_guest: Callable[[int, int], bytes]) -> Any:
            self._local.chain = (queue, chain, _readable(chain, read_guest))
            return original(balloon, queue, chain, memory, read_guest)

        return serve

    def discard(self, original: Any) -> Any:
        """Write the chain down when its pages were discarded and it was held for a moment."""

        def discard(service: RingService, plan: DiscardPlan) -> int | None:
            files = service._memory.files
            unused = [place for place in plan.discards if not any(_present(files, place))]
            done: int | None = original(service, plan)
            queue, chain, data = self._local.chain
            name = "unknown" if queue is None else queue.value
            touched: list[int] = []
            if name in WATCHED and plan.discards:
                time.sleep(HOLD_SECONDS)
                touched = [at for place in plan.discards for at in _addresses(service, place)]
            self._keep(name, plan)
            table = service._memory.table
            self.write_line(
                SeenChain(
                    t=time.monotonic(),
                    queue=name,
                    index=service.index,
                    readable=chain.readable[:256],
                    writable=chain.writable[:256],
                    indirect=chain.indirect_table is not None,
                    data=data.hex(),
                    touched=touched[:16],
                    unused=[(table.guest_of(place), place.length) for place in unused][:64],
                    avail_flags=_avail_flags(service),
                    ahead=int(service._held is not None),
                ).line()
            )
            return done

        return discard

    def _keep(self, name: str, plan: DiscardPlan) -> None:
        if name != "inflate":
            return
        self._ballooned |= {
            (place.region, at)
            for place in plan.discards
            for at in range(place.offset, place.offset + place.length, PAGE_SIZE)
        }

    def forget_deflated(self, service: RingService, data: bytes) -> None:
        """Take the pages of a deflate out of those that are watched."""
        for start in range(0, len(data) - 3, 4):
            pfn = int.from_bytes(data[start : start + 4], "little")
            place = service._memory.table.translate_guest(pfn * PAGE_SIZE, PAGE_SIZE)
            if place is not None:
                known = (place.region, place.offset) in self._ballooned
                self._ballooned.discard((place.region, place.offset))
                if not known:
                    self.write("deflated_not_inflated", gpa=pfn * PAGE_SIZE)

    def start(self, original: Any) -> Any:
        """Have each ring that is started watched."""

        def start(service: RingService) -> None:
            original(service)
            self._services.append(service)

        return start

    def look(self) -> None:
        """Look again and again, on a thread of its own."""
        while True:
            time.sleep(LOOK_SECONDS)
            for service in list(self._services):
                if service._state in (ServiceState.STOPPED, ServiceState.BROKEN):
                    self._services.remove(service)
                    continue
                with contextlib.suppress(ValueError, IndexError):  # the ring may be let go at any moment
                    self._look_at(service)

    def _look_at(self, service: RingService) -> None:
        waits = service._state is ServiceState.IDLE and not service._is_stale and _has_chain(service)
        key = id(service)
        self._unkicked[key] = self._unkicked.get(key, 0) + 1 if waits else 0
        if self._unkicked[key] == 3:
            self.write("unkicked", queue=service.index)
            service._loop.call_soon_threadsafe(service.kick)


def _readable(chain: Any, read_guest: Callable[[int, int], bytes]) -> bytes:
    data = b""
    for address, length in chain.readable:
        with contextlib.suppress(Exception):
            data += read_guest(address, min(length, DATA_MAX - len(data)))
    return data


def _present(files: Any, place: FileRange) -> Iterator[int]:
    # On an open file of its own: a position that is shared with the front-end is the front-end's.
    fd = os.open(f"/proc/self/fd/{files[place.region].fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        at, end = place.offset, place.offset + place.length
        while at < end:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return
            if at < end:
                yield at
            at += PAGE_SIZE
    finally:
        os.close(fd)


def _addresses(service: RingService, place: FileRange) -> Iterator[int]:
    for at in _present(service._memory.files, place):
        yield service._memory.table.guest_of(FileRange(place.region, at, PAGE_SIZE))


def _avail_flags(service: RingService) -> int:
    ring: Any = getattr(service._ring, "_ring", None)
    avail = getattr(ring, "avail", None)
    return int(avail[0]) if avail is not None else int(ring.driver_event[0] >> 16)


def _has_chain(service: RingService) -> bool:
    queue: Any = service._ring
    ring = queue._ring
    if hasattr(ring, "avail"):
        return bool(ring.avail[1] != queue.next_avail)
    return bool(ring.halves[8 * queue._next_avail + 7] & AVAIL_USED == queue._avail_bits)


def _watch_deflates(watch: Watch) -> None:
    def make(original: Any) -> Any:
        def serve_chain(service: RingService, turn: Any, chain: Any, *rest: Any) -> bool:
            if service.queue is not None and service.queue.value == "deflate":
                watch.forget_deflated(service, _readable(chain, service._memory.read))
            done: bool = original(service, turn, chain, *rest)
            return done

        return serve_chain

    replaced(RingService, "_serve_chain", make)


def _watch_offer(watch: Watch) -> None:
    def make(original: Any) -> Any:
        def set_features(session: Any, message: Any) -> Any:
            watch.write("offered", features=session.offered)
            yield from original(session, message)

        return set_features

    replaced(feature_requests, "set_features", make)


def main(argv: Sequence[str] | None = None) -> int:
    """Be the device; return the daemon's exit status. The first argument is the file, the second a fault or ``-``."""
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        with open(words[0], "a", encoding="utf-8") as stream:
            watch = Watch(stream)
            if words[1] != "-":
                ALL_FAULTS[words[1]].break_it()
            replaced(VirtioBalloon, "serve", watch.serve)
            replaced(RingService, "_discard", watch.discard)
            replaced(RingService, "start", watch.start)
            _watch_deflates(watch)
            _watch_offer(watch)
            threading.Thread(target=watch.look, daemon=True).start()
            return serve(words[2:])

    return run_command("balloon-check", run)


if __name__ == "__main__":
    sys.exit(main())
