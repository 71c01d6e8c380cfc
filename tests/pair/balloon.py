"""An emulated guest and the device that serves it, in one process and one event loop, over a real socket."""

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from guest.machine import Machine
from guest.vmm import VirtualMachine
from guest.vmm_options import VmmOptions
from guest.workloads.workload import Steps, Workload
from host.balloon.virtio_balloon import VirtioBalloon
from host.connection import Connection
from host.peers.peers import Peers
from host.vhost_user.session import Session
from protocol.balloon_config import BalloonConfig
from protocol.process.events import EventLog
from tests.harness.processes import DEADLINE

MIB: Final = 1 << 20


class Pair:
    """A guest of 64 MiB unless told otherwise, and the present device."""

    def __init__(self, path: Path, features: int, num_pages: int, workloads: tuple[Workload, ...], **options: Any):
        self._stream = io.StringIO()
        self._read = 0
        self._events: list[dict[str, Any]] = []
        self._features = features
        self.num_pages = num_pages
        """The target of the next device, in pages."""
        chosen: dict[str, Any] = {"memory": 64 * MIB, "reporter": "off", "hold": True, **options}
        self.machine = VirtualMachine(
            VmmOptions(socket_path=path, workloads=workloads, **chosen),
            EventLog(self._stream, asyncio.get_running_loop().time),
        )
        self.device: Connection
        self.running: asyncio.Task[int] = asyncio.create_task(self.machine.run())
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.setblocking(False)
        self._session: asyncio.Task[str] | None = None

    async def serve(self) -> None:
        """Serve one device after another; never return."""
        with ThreadPoolExecutor(4) as executor:
            while True:
                sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
                balloon = VirtioBalloon(config=BalloonConfig(num_pages=self.num_pages))
                session = Session(offered=self._features, balloon=balloon)
                self.device = Connection(sock, session, Peers(executor), lambda event, **fields: None)
                self.device.control.state_memory(0, reserve=0)
                self._session = asyncio.create_task(self.device.run())
                try:
                    await asyncio.wait([self._session])
                finally:
                    self._session.cancel()
                    await asyncio.gather(self._session, return_exceptions=True)

    def hang_up(self) -> None:
        """End the device as the daemon ends it: no discard is under way any more when the guest hears of it."""
        assert self._session is not None
        self._session.cancel()

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return all events of the guest so far, or those of one name."""
        self._stream.seek(self._read)
        self._events += map(json.loads, self._stream)
        self._read = self._stream.tell()
        return [event for event in self._events if name in (None, event["event"])]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition`` holds."""
        while not condition():
            if self.running.done():
                raise AssertionError(f"the guest has ended with {self.running.result()}")
            await asyncio.sleep(0.002)

    async def until_actual(self, pages: int) -> None:
        """Wait until the device knows that the balloon has ``pages`` pages."""
        await self.until(lambda: self.device.control.info().actual == pages)

    async def until_event(self, name: str, **fields: object) -> None:
        """Wait until the guest has said this."""
        await self.until(lambda: any(event.items() >= fields.items() for event in self.events(name)))

    def memory(self, field: str) -> int:
        """Return one field of the guest's newest ``memory`` event, in bytes."""
        return int(self.events("memory")[-1][field])


class Later:
    """A workload that begins when the test says so."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self.may_begin = False

    def run(self, machine: Machine, seed: int) -> Steps:
        """Wait, then do what the workload does."""
        while not self.may_begin:
            yield 0.005
        yield from self._workload.run(machine, seed)


@contextlib.asynccontextmanager
async def running_pair(
    path: Path, features: int, *workloads: Workload, num_pages: int = 0, status: int = 0, **options: Any
) -> AsyncIterator[Pair]:
    """Run a guest with its device; in the end it is switched off and has to leave with ``status``."""
    pair = Pair(path, features, num_pages, workloads, **options)
    serving = asyncio.create_task(pair.serve())
    try:
        async with asyncio.timeout(3 * DEADLINE):  # a guest at work beside other tests
            await pair.until(lambda: pair.events("memory"))
            yield pair
            os.kill(os.getpid(), signal.SIGTERM)
            assert await pair.running == status
    finally:
        pair.running.cancel()
        await asyncio.gather(pair.running, return_exceptions=True)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        pair.close()
