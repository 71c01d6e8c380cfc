"""What the device does while it watches: it waits for a driver, and asks for statistics, a balloon, and hints."""

import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from host.qmp.qmp_client import CommandError, QmpClient
from protocol.errors import BalloonError, UsageError
from protocol.recording.lines import Cut, read_records
from protocol.recording.records import SessionBegin
from protocol.virtio_balloon import BalloonFeature
from scripts.check.driver.observation import WRONG_REPLY_SUFFIX, Observed
from scripts.check.programs import end_group, how_ended, words_of
from scripts.check.verdict import TargetError
from scripts.child_processes import Child, Children, LineTail, python_module

BALLOON: Final = 16 << 20
"""Bytes of the balloon that is asked for."""

KEEP_SECONDS: Final = 0.5
"""Seconds for which the balloon stays as it is."""

FILLED_SECONDS: Final = 1.0
"""Seconds after a deflate in which the device looks whether the pages were filled."""

REACH_SECONDS: Final = 10.0
STATISTICS: Final = 3

STATISTICS_APART: Final = 0.1
"""Seconds before each request for statistics."""

HANG_UP_SECONDS: Final = 3.0
"""Seconds within which a front-end has hung up after a wrong reply."""

FREE_SECONDS: Final = 1.5
"""Seconds after which the pages of a round of hints are free again."""

FEATURES: Final = "packed=on,in-order=on,free-page-hint=on,page-poison=on,must-tell-host=on"


class Act(Enum):
    """What the device does while it watches, beside waiting."""

    STATISTICS = "statistics"
    HINTS = "hints"
    BALLOON = "balloon"
    WRONG_REPLY = "wrong reply"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioOptions:
    """How a driver is watched: for ``seconds`` after it came, which is waited for ``attach_seconds``.

    ``start`` is a command that brings it, in ``environment`` or that of this process. ``features`` are offered, in the
    daemon's words; ``in_band`` offers kicks as messages. With ``fault`` the device has this one. ``record`` is the file
    of the recording. A balloon of another size is waited for ``patience`` seconds.
    """

    attach_seconds: float = 60.0
    seconds: float = 20.0
    start: str | None = None
    environment: Mapping[str, str] | None = None
    features: str = FEATURES
    in_band: bool = False
    fault: str | None = None
    record: Path | None = None
    acts: frozenset[Act] = frozenset(Act)
    patience: float = REACH_SECONDS


class Scenario:
    """One driver from its attachment to the end. ``say`` is told what is going on."""

    def __init__(
        self, directory: Path, socket_path: Path, options: ScenarioOptions, say: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._socket_path = socket_path
        self._options = options
        self._say = say
        self._record = options.record or directory / "record"
        self._recorded = self._record.stat().st_size if self._record.exists() else 0
        self._seen = Observed()
        self._lines = LineTail(directory / "observations")
        self._device: Child | None = None

    def run(self) -> Observed:
        """Watch a driver.

        Raises:
            TargetError: no driver attached in time.
            UsageError: the device does not start with these options.
        """
        options = self._options
        control = self._directory / "control"
        with Children(self._directory) as children:
            self._device = children.start("device", self._device_command(control), "device.jsonl")
            try:
                self._device.wait_for_event("listening", 15.0)
            except BalloonError as error:
                raise UsageError(f"the device does not start: {error}") from error
            self._say(f"waiting for a driver at {self._socket_path}")
            driver = _start(options.start, options.environment)
            try:
                self._wait_for_driver(options.attach_seconds, driver)
                begin = time.monotonic()
                with QmpClient(control) as client:
                    self._ask(client, begin, options.seconds)
                self._wait(lambda: time.monotonic() > begin + options.seconds, options.seconds)
                self._read()
                self._seen.marks["ended_by_us"] = not self._seen.named("disconnected")
                if self._seen.marks["ended_by_us"]:
                    self._seen.marks["end"] = time.monotonic()
                    self._reply_wrongly(control)
            finally:
                if driver is not None:
                    end_group(driver)
        self._take_records()
        return self._seen

    def _device_command(self, control: Path) -> list[str]:
        options = self._options
        words = ["--socket-path", str(self._socket_path), "--control", str(control)]
        words += ["--events", str(self._directory / "device.jsonl"), "--features", options.features]
        words += ["--record", str(self._record), "--in-band", "on" if options.in_band else "off"]
        module = "scripts.check.driver.watching_device"
        return python_module(module, str(self._lines.path), options.fault or "-", *words)

    def _take_records(self) -> None:
        # What came before the wrong reply: afterwards a front-end may begin anew, or do anything.
        end = self._seen.marks.get("end", math.inf)
        with self._record.open("rb") as file:
            file.seek(self._recorded)
            lines = (line for line in file if line.strip())
            records = [one for one in read_records(lines) if not isinstance(one, Cut)]
        begins = [at for at, one in enumerate(records) if isinstance(one, SessionBegin) and one.t < end]
        self._seen.records = [one for one in records[begins[-1] if begins else 0 :] if one.t < end]

    def _reply_wrongly(self, control: Path) -> None:
        # The reply to GET_CONFIG names another request, as the last thing that the front-end is shown.
        assert self._device is not None
        memory = self._memory()
        if Act.WRONG_REPLY not in self._options.acts or memory <= 4 * BALLOON:
            return
        self._say("giving a wrong reply")
        wish = Path(f"{self._lines.path}{WRONG_REPLY_SUFFIX}")
        wish.touch()
        with QmpClient(control) as client:
            self._command(client, "balloon", **{"value": memory - BALLOON, "guest-memory": memory})
        gone = False
        end = time.monotonic() + HANG_UP_SECONDS
        while not gone and time.monotonic() < end:
            time.sleep(0.05)
            gone = any(event["event"] == "disconnected" for event in self._device.new_events())
        if not wish.exists():
            self._seen.marks["hung_up"] = gone

    def _memory(self) -> int:
        return max((int(event["bytes"]) for event in self._seen.named("memory")), default=0)

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
                raise TargetError(f"the command of --start {how_ended(driver.returncode)} before it attached")
            return bool(self._seen.named("features"))

        if not self._wait(attached, seconds):
            came = self._seen.named("connected")
            why = "a front-end connected, but no driver accepted features" if came else "nothing connected"
            raise TargetError(f"no driver attached within {seconds:g} s: {why}")
        self._say("a driver has attached")

    def _ask(self, client: QmpClient, begin: float, seconds: float) -> None:
        # The kernel reports 2 s after its driver was loaded: what is asked for comes after that.
        self._wait(lambda: time.monotonic() > begin + min(5.0, seconds / 3), seconds)
        acts = self._options.acts
        if Act.STATISTICS in acts and self._seen.has(BalloonFeature.STATS_VQ):
            self._say("asking for statistics")
            self._ask_statistics(client)
        if Act.HINTS in acts and self._seen.has(BalloonFeature.FREE_PAGE_HINT):
            self._hint(client)
        if Act.BALLOON in acts:
            self._resize(client)

    def _hint(self, client: QmpClient) -> None:
        self._say("asking for hints, and ending a second round early")
        self._seen.marks["hints"] = time.monotonic()
        self._command(client, "reclaim", method="hint")
        self._seen.marks["hinted"] = time.monotonic()
        if Act.STATISTICS in self._options.acts and self._seen.has(BalloonFeature.STATS_VQ):
            time.sleep(FREE_SECONDS)  # the driver releases its pages at its own pace, and tells nothing of it
            self._ask_statistics(client)
        self._seen.marks["hints_again"] = time.monotonic()
        self._command(client, "reclaim", method="hint")

    def _resize(self, client: QmpClient) -> None:
        memory = self._memory()
        if memory <= 4 * BALLOON:
            return
        self._say("asking for a balloon, and for none")
        if self._command(client, "balloon", **{"value": memory - BALLOON, "guest-memory": memory}) is None:
            return
        self._seen.marks["balloon"] = BALLOON
        self._wait(lambda: self._actual() == BALLOON, self._options.patience)
        self._seen.marks["reached"] = self._actual()
        self._seen.marks["kept_from"] = time.monotonic()
        self._wait(lambda: False, KEEP_SECONDS)
        self._seen.marks["kept_to"] = time.monotonic()
        self._command(client, "balloon", **{"value": memory, "guest-memory": memory})
        self._wait(lambda: self._actual() == 0, self._options.patience)
        self._seen.marks["left"] = self._actual()
        if self._seen.has(BalloonFeature.PAGE_POISON):
            self._wait(lambda: False, FILLED_SECONDS)

    def _ask_statistics(self, client: QmpClient) -> None:
        # Several times: blocks that are being reported are not free for that moment.
        for _ in range(STATISTICS):
            self._wait(lambda: False, STATISTICS_APART)
            answer = self._command(client, "query-guest-statistics")
            self._seen.marks["statistics"] = self._seen.marks.get("statistics", 0) + 1
            if answer is None:
                return

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


def _start(command: str | None, environment: Mapping[str, str] | None) -> "subprocess.Popen[bytes] | None":
    if command is None:
        return None
    words = words_of(command, "--start")
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise TargetError(f"--start: {words[0]}: {error.strerror}") from error


def observe(socket_path: Path, options: ScenarioOptions, say: Callable[[str], None]) -> Observed:
    """Watch the driver that attaches at ``socket_path``: see :meth:`Scenario.run`."""
    with tempfile.TemporaryDirectory(prefix="balloon-check-") as scratch:
        return Scenario(Path(scratch), socket_path, options, say).run()
