"""What the device does while it watches: it waits for a driver, and asks for statistics, a balloon, and hints."""

import contextlib
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from host.qmp.qmp_client import CommandError, QmpClient
from protocol.errors import BalloonError, UsageError
from protocol.virtio_balloon import BalloonFeature
from scripts.check.driver.observation import Observed
from scripts.check.verdict import TargetError
from scripts.child_processes import Child, Children, LineTail, python_module

BALLOON: Final = 16 << 20
"""Bytes of the balloon that is asked for."""

REACH_SECONDS: Final = 10.0
STATISTICS: Final = 3

FEATURES: Final = "packed=on,free-page-hint=on,must-tell-host=on"


class Scenario:
    """One driver from its attachment to the end. ``say`` is told what is going on."""

    def __init__(
        self, directory: Path, socket_path: Path, fault: str | None, say: Callable[[str], None], record: Path | None
    ) -> None:
        self._directory = directory
        self._socket_path = socket_path
        self._fault = fault
        self._say = say
        self._record = record
        self._seen = Observed()
        self._lines = LineTail(directory / "observations")
        self._device: Child | None = None

    def run(self, *, attach_seconds: float, seconds: float, start: str | None, features: str | None) -> Observed:
        """Watch a driver for ``seconds``.

        Raises:
            TargetError: no driver attached within ``attach_seconds``.
            UsageError: the device does not start with these options.
        """
        control = self._directory / "control"
        with Children(self._directory) as children:
            options = ["--socket-path", str(self._socket_path), "--control", str(control)]
            options += ["--events", str(self._directory / "device.jsonl"), "--features", features or FEATURES]
            options += [] if self._record is None else ["--record", str(self._record)]
            module = "scripts.check.driver.watching_device"
            argv = python_module(module, str(self._lines.path), self._fault or "-", *options)
            self._device = children.start("device", argv, "device.jsonl")
            try:
                self._device.wait_for_event("listening", 15.0)
            except BalloonError as error:
                raise UsageError(f"the device does not start: {error}") from error
            self._say(f"waiting for a driver at {self._socket_path}")
            driver = _start(start)
            try:
                self._wait_for_driver(attach_seconds, driver)
                begin = time.monotonic()
                with QmpClient(control) as client:
                    self._ask(client, begin, seconds)
                self._wait(lambda: time.monotonic() > begin + seconds, seconds)
                self._seen.marks["ended_by_us"] = not self._seen.named("disconnected")
            finally:
                if driver is not None:
                    _stop(driver)
            self._read()
        return self._seen

    def _read(self) -> None:
        assert self._device is not None
        self._seen.events += self._device.new_events()
        self._seen.take_lines(self._lines.read())

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        assert self._device is not None
        end = time.monotonic() + seconds
        while True:
            self._read()
            if condition():
                return True
            if self._seen.named("disconnected") or time.monotonic() > end:
                return False
            if self._device.ended():
                raise BalloonError(self._device.how_it_ended())
            time.sleep(0.05)

    def _wait_for_driver(self, seconds: float, driver: "subprocess.Popen[bytes] | None") -> None:
        def attached() -> bool:
            if driver is not None and driver.poll() is not None and not self._seen.named("features"):
                raise TargetError(f"the command of --start ended with status {driver.returncode} before it attached")
            return bool(self._seen.named("features"))

        if not self._wait(attached, seconds):
            came = self._seen.named("connected")
            why = "a front-end connected, but no driver accepted features" if came else "nothing connected"
            raise TargetError(f"no driver attached within {seconds:g} s: {why}")
        self._say("a driver has attached")

    def _ask(self, client: QmpClient, begin: float, seconds: float) -> None:
        # The kernel reports 2 s after its driver was loaded: what is asked for comes after that.
        self._wait(lambda: time.monotonic() > begin + min(5.0, seconds / 3), seconds)
        if self._seen.has(BalloonFeature.STATS_VQ):
            self._say("asking for statistics")
            for _ in range(STATISTICS):
                self._command(client, "query-guest-statistics")
                self._seen.marks["statistics"] = self._seen.marks.get("statistics", 0) + 1
        if self._seen.has(BalloonFeature.FREE_PAGE_HINT):
            self._say("asking for hints")
            self._command(client, "reclaim", method="hint")
        self._resize(client)

    def _resize(self, client: QmpClient) -> None:
        memory = max((int(event["bytes"]) for event in self._seen.named("memory")), default=0)
        if memory <= 4 * BALLOON:
            return
        self._say("asking for a balloon, and for none")
        if self._command(client, "balloon", **{"value": memory - BALLOON, "guest-memory": memory}) is None:
            return
        self._seen.marks["balloon"] = BALLOON
        self._wait(lambda: self._actual() == BALLOON, REACH_SECONDS)
        self._seen.marks["reached"] = self._actual()
        self._command(client, "balloon", **{"value": memory, "guest-memory": memory})
        self._wait(lambda: self._actual() == 0, REACH_SECONDS)
        self._seen.marks["left"] = self._actual()

    def _actual(self) -> int:
        sizes = self._seen.named("balloon")
        return int(sizes[-1]["actual_bytes"]) if sizes else 0

    def _command(self, client: QmpClient, name: str, **arguments: Any) -> object:
        try:
            answer: object = client.command(name, **arguments)
        except (CommandError, BalloonError) as error:
            self._say(f"{name}: {error}")
            return None
        return answer if answer is not None else {}


def _start(command: str | None) -> "subprocess.Popen[bytes] | None":
    if command is None:
        return None
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--start: {error}") from error
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise TargetError(f"--start: {words[0]}: {error.strerror}") from error


def _stop(driver: "subprocess.Popen[bytes]") -> None:
    driver.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(5.0)
        return
    driver.kill()
    driver.wait()


def observe(
    socket_path: Path,
    say: Callable[[str], None],
    *,
    fault: str | None = None,
    attach_seconds: float,
    seconds: float,
    start: str | None = None,
    features: str | None = None,
    record: Path | None = None,
) -> Observed:
    """Watch the driver that attaches at ``socket_path``: see :meth:`Scenario.run`."""
    with tempfile.TemporaryDirectory(prefix="balloon-check-") as scratch:
        scenario = Scenario(Path(scratch), socket_path, fault, say, record)
        return scenario.run(attach_seconds=attach_seconds, seconds=seconds, start=start, features=features)
