"""Headless Chromium, driven through its pipe (``--remote-debugging-pipe``): one JSON message, ended by a zero byte."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from tests.harness.processes import DEADLINE

PROGRAMS: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
KEY_CODES: Final = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowUp": 38, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9}


def find_chromium() -> str | None:
    """Return the path of the browser, None where there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Chromium:
    """A browser with one page. ``problems`` are what the page has written to its console, and its exceptions."""

    def __init__(self, program: str) -> None:
        self.problems: list[str] = []
        self._directory = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        command = [
            *(program, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"),
            *("--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--disable-background-networking"),
            *(f"--user-data-dir={self._directory.name}", "about:blank"),
        ]
        to_it, self._out = os.pipe()
        self._in, from_it = os.pipe()
        # It reads from descriptor 3 and writes to 4: copied from numbers above these, so that none is overwritten.
        reader, writer = fcntl.fcntl(to_it, fcntl.F_DUPFD_CLOEXEC, 10), fcntl.fcntl(from_it, fcntl.F_DUPFD_CLOEXEC, 10)
        actions = [
            *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)),
            (os.POSIX_SPAWN_DUP2, reader, 3),
            (os.POSIX_SPAWN_DUP2, writer, 4),
        ]
        self._pid = os.posix_spawn(program, command, os.environ, file_actions=actions)
        for fd in (to_it, from_it, reader, writer):
            os.close(fd)
        self._session: str | None = None
        self._rest = b""
        self._number = 0

    def __enter__(self) -> Self:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *reason: object) -> None:
        self._session = None
        self.ask("Browser.close")
        pidfd = os.pidfd_open(self._pid)
        if not select.select([pidfd], [], [], DEADLINE)[0]:
            os.kill(self._pid, signal.SIGKILL)
        os.close(pidfd)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)
        self._directory.cleanup()

    def ask(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        """Return the answer to one command of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return dict(found["result"])

    def open(self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False, scale: int = 1) -> None:
        """Open the file, and wait until it is loaded."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEY_CODES[key])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a picture (PNG) of what is visible, or of the whole page."""
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _read(self) -> Mapping[str, Any]:
        end = time.monotonic() + DEADLINE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._in, 1 << 16) if ready else b""
            assert data, "Chromium does not answer"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        match found.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(found["params"]["exceptionDetails"]))
            case "Runtime.consoleAPICalled" | "Log.entryAdded":
                self.problems.append(json.dumps(found["params"]))
        return found
