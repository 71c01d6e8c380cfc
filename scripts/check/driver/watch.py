"""What the watching device writes down, and how: each method makes what a method of the daemon is replaced with."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any, Final, TextIO

from host.memory.discard_plan import DiscardPlan
from host.ring.ring_service import RingService
from host.ring.service_state import ServiceState
from protocol.memory import PAGE_SIZE, FileRange
from protocol.virtio import has_feature
from protocol.virtio_balloon import BalloonFeature
from scripts.check.driver.memory_look import MIXED, contents, page_places, present_addresses, present_pages
from scripts.check.driver.observation import SeenChain
from scripts.check.driver.ring_look import (
    ChainText,
    avail_flags,
    bare_queue,
    has_chain,
    read_text,
    read_text_at,
)

HOLD_SECONDS: Final = 0.02
"""Seconds for which a chain that gave pages away is held. A driver that breaks the rule uses one within that time."""

LOOK_SECONDS: Final = 0.1
"""Seconds between looks at rings that were not kicked."""

UNKICKED_LOOKS: Final = 10
"""Looks at which a chain waits until its kick is missing: one second, for a kick may be a message on a busy machine."""

FILL_SECONDS: Final = 0.5
"""Seconds after which a page that was taken back has to be filled, where the driver says that it does so at once."""

WATCHED: Final = ("reporting", "inflate", "deflate")
"""Queues whose chains are held for a moment."""

CUT_ROUND: Final = 2
"""The round of hints that the device ends at the first hint."""


WRITTEN_REPORT: Final = 2
"""The report into whose pages the device writes, as it may."""


class Watch:
    """Writes what it is shown to ``stream``, from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._local = threading.local()
        self._services: list[RingService] = []
        self._unkicked: dict[int, int] = {}
        self._ballooned: set[tuple[int, int]] = set()
        self._held: dict[RingService, tuple[Any, int, ChainText]] = {}
        self._deflated: list[tuple[float, RingService, list[FileRange]]] = []
        self._reports = 0
        self._rounds: list[int] = []
        self._is_cut = False

    def write(self, kind: str, **fields: Any) -> None:
        """Write one line."""
        self.write_line(json.dumps({"kind": kind, **fields}))

    def write_line(self, line: str) -> None:
        """Write one line that is JSON."""
        with self._lock:
            self._stream.write(line + "\n")
            self._stream.flush()

    # -- what the daemon's code is replaced with --------------------------------------------------------------------

    def serve_chain(self, original: Any) -> Any:
        """Note each chain before the device looks at it, and the statistics buffer that it keeps."""

        def serve_chain(service: RingService, turn: Any, chain: Any, *rest: Any) -> bool:
            text = read_text(service, chain)
            self._local.chain = (chain, text)
            done: bool = original(service, turn, chain, *rest)
            if service._held is chain:
                self._held[service] = (chain, text.offered.descriptors[0].place, text)
            return done

        return serve_chain

    def give_back_held(self, original: Any) -> Any:
        """See whether the statistics buffer is what it was when it was taken."""

        def give_back_held(service: RingService) -> None:
            chain, first, text = self._held.pop(service, (None, 0, None))
            if chain is not None and text is not None and chain is service._held:
                self._compare(service, text, read_text_at(service, chain, first))
            original(service)

        return give_back_held

    def _compare(self, service: RingService, before: ChainText, after: ChainText) -> None:
        if what := before.difference(after):
            name = "unknown" if service.queue is None else service.queue.value
            packed = hasattr(bare_queue(service), "_slots_of")
            self.write("changed", queue=name, packed=packed, what=what, is_data=what.startswith("byte"))

    def discard(self, original: Any) -> Any:
        """Write the chain down when its pages were discarded and it was held for a moment."""

        def discard(service: RingService, plan: DiscardPlan) -> int | None:
            files = service._memory.files
            chain, text = self._local.chain
            name = "unknown" if service.queue is None else service.queue.value
            reported = chain.writable if name == "reporting" else ()
            unused = [place for place in plan.discards if not any(present_pages(files, place))]
            holds = contents(service, reported)
            done: int | None = original(service, plan)
            touched: list[int] = []
            if name in WATCHED:
                time.sleep(HOLD_SECONDS)
                touched = [at for place in plan.discards for at in present_addresses(service, place)]
                if not plan.discards:
                    after = contents(service, reported)
                    touched += [at for at, held in holds.items() if held != MIXED and after.get(at) != held]
                touched += self._taken_back(service, text.data) if name == "deflate" else ()
                self._compare(service, text, read_text(service, chain))
            self._keep(name, plan)
            if name == "reporting":
                self._write_into(service, plan)
            self._cut(service, name, chain, text.data)
            table = service._memory.table
            self.write_line(
                SeenChain(
                    t=time.monotonic(),
                    queue=name,
                    index=service.index,
                    readable=chain.readable[:256],
                    writable=chain.writable[:256],
                    indirect=chain.indirect_table is not None,
                    data=text.data.hex(),
                    touched=touched[:16],
                    unused=[(table.guest_of(place), place.length) for place in unused][:64],
                    fills=list(holds.values())[:64],
                    poison=service._balloon.config.poison_val,
                    avail_flags=avail_flags(service),
                    ahead=int(service._held is not None),
                ).line()
            )
            return done

        return discard

    def _write_into(self, service: RingService, plan: DiscardPlan) -> None:
        # Without PAGE_POISON a device may change a reported page until it acknowledges (virtio 1.2, 5.5.6.7.2).
        if has_feature(service._balloon.features, BalloonFeature.PAGE_POISON) or not plan.discards:
            return
        self._reports += 1
        if self._reports == WRITTEN_REPORT:
            for place in plan.discards:
                os.pwrite(service._memory.files[place.region].fd, PAGE_SIZE * b"\x5a", place.offset)
            self.write("written", pages=len(plan.discards))

    def _keep(self, name: str, plan: DiscardPlan) -> None:
        if name != "inflate":
            return
        self._ballooned |= {
            (place.region, at)
            for place in plan.discards
            for at in range(place.offset, place.offset + place.length, PAGE_SIZE)
        }

    def _taken_back(self, service: RingService, data: bytes) -> Iterator[int]:
        # Yields the addresses of pages of the balloon that are used already.
        places = list(page_places(service, data))
        for place in places:
            key = (place.region, place.offset)
            if key in self._ballooned:
                yield from present_addresses(service, place)
                self._ballooned.discard(key)
            elif not has_feature(service._balloon.features, BalloonFeature.PAGE_POISON):
                self.write("deflated_not_inflated", gpa=service._memory.table.guest_of(place))
        if has_feature(service._balloon.features, BalloonFeature.PAGE_POISON):
            self._deflated.append((time.monotonic(), service, places))

    def _cut(self, service: RingService, name: str, chain: Any, data: bytes) -> None:
        if name != "free_page":
            return
        if len(data) == 4 and (command := int.from_bytes(data, "little")) > 1 and command not in self._rounds:
            self._rounds.append(command)
        if chain.writable and len(self._rounds) == CUT_ROUND and not self._is_cut:
            self._is_cut = True
            service._loop.call_soon_threadsafe(service._balloon.hinting.stop)

    def start(self, original: Any) -> Any:
        """Have each ring that is started watched."""

        def start(service: RingService) -> None:
            original(service)
            self._services.append(service)

        return start

    # -- on a thread of its own -------------------------------------------------------------------------------------

    def look(self) -> None:
        """Look again and again at rings that were not kicked, and at pages that were taken back."""
        while True:
            time.sleep(LOOK_SECONDS)
            for service in list(self._services):
                if service._state in (ServiceState.STOPPED, ServiceState.BROKEN):
                    self._services.remove(service)
                    continue
                with contextlib.suppress(ValueError, IndexError):  # the ring may be let go at any moment
                    self._look_at(service)
            while self._deflated and self._deflated[0][0] + FILL_SECONDS < time.monotonic():
                with contextlib.suppress(ValueError, IndexError, KeyError, OSError):
                    self._look_at_fill(*self._deflated.pop(0)[1:])

    def _look_at(self, service: RingService) -> None:
        waits = service._state is ServiceState.IDLE and not service._is_stale and has_chain(service)
        key = id(service)
        self._unkicked[key] = self._unkicked.get(key, 0) + 1 if waits else 0
        if self._unkicked[key] == UNKICKED_LOOKS:
            self.write("unkicked", queue=service.index)
            service._loop.call_soon_threadsafe(service.kick)

    def _look_at_fill(self, service: RingService, places: list[FileRange]) -> None:
        table = service._memory.table
        found = contents(service, [(table.guest_of(place), place.length) for place in places])
        poison = service._balloon.config.poison_val
        filled = sum(word == poison for word in found.values())
        self.write("deflated_filled", pages=len(places), absent=len(places) - len(found), filled=filled)
