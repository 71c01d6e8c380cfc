"""The proxy as a process, between real processes."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from scripts.check.faults.command import shipped_scripts
from tests.harness.processes import DaemonProcess, ProgramProcess, unchanged_fds
from tests.scripts.check.faults.proxy_process import ProxyProcess

pytestmark = pytest.mark.processes

MACHINE: Final = (
    *("--memory", "64M", "--reporter", "boundary", "--high-water-mark", "4", "--reporting-capacity", "4"),
    *("--reporting-order", "5", "--seed", "5"),
)

LAST_WORDS: Final = {
    "duplicated-call": "the back-end's answer to SET_VRING_KICK is invalid",
    "extra-descriptors": "the back-end refused SET_FEATURES",
    "withheld-memory": "the back-end refused SET_MEM_TABLE",
    "wrong-index": "the back-end refused SET_VRING_NUM",
    "wrong-kick-descriptor": "the back-end refused SET_VRING_KICK",
    "wrong-size": "the back-end refused SET_VRING_ADDR",
}
"""How the guest ends where a fault makes it impossible to go on."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon"), "--features", "packed=on") as daemon:
        yield daemon


DISCONNECT: Final = {"disconnect-in-mid-report", "overlapping-sessions"}
"""Scripts after which the guest attaches again."""


def guest_options(proxy: ProxyProcess, *options: str, seconds: float = 0.6) -> tuple[str, ...]:
    workload = ("--workload", f"churn:size=24M,seconds={seconds},lifetime=0.05")
    return ("--socket-path", str(proxy.socket_path), *MACHINE, *workload, *options)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_proxy_without_a_script_is_not_noticed(daemon: DaemonProcess, tmp_path: Path, ring: str) -> None:
    with ProxyProcess(tmp_path, daemon.socket_path) as proxy, unchanged_fds(proxy.pid), unchanged_fds(daemon.pid):
        with ProgramProcess("guest", *guest_options(proxy, "--ring", ring)) as guest:
            vm = daemon.events.wait("connected", pid=proxy.pid)["vm"]
            assert guest.wait() == 0
        end = daemon.settled(vm)
        told, done = guest.events.all("report"), daemon.events.all("report", vm=vm)
        assert [event["bytes"] for event in done][: len(told)] == [event["bytes"] for event in told]
        assert end["refused"] == {}
        assert guest.events.wait("finished")["corrupted_pages"] == 0
        ended = proxy.events.wait("disconnected", session=1)
        assert ended["reason"] == "the front-end closed its connection"
        assert proxy.events.all("fault") == proxy.events.all("not_replaced") == []
    assert not proxy.socket_path.exists()
    assert not Path(f"{proxy.socket_path}.lock").exists()


@pytest.mark.parametrize("name", [path.stem for path in shipped_scripts()])
def test_shipped_script_ends_clearly_and_harms_no_page(daemon: DaemonProcess, tmp_path: Path, name: str) -> None:
    """The guest goes on, or ends with one line; the daemon lives on, with the descriptors that it had."""
    ring = "packed" if "mid-report" in name else "split"
    known = len(daemon.events.all("connected"))
    with ProxyProcess(tmp_path, daemon.socket_path, "--script", name) as proxy, unchanged_fds(daemon.pid):
        with ProgramProcess("guest", *guest_options(proxy, "--ring", ring)) as guest:
            status = guest.wait()
            words, errors = LAST_WORDS.get(name), guest.stderr()
            if words is None:
                left = f"balloon-guest: back-end gone; waiting for a back-end at {proxy.socket_path}\n"
                # A guest whose work is done while it waits does not attach again.
                again = f"{left}balloon-guest: attached again\n"
                assert status == 0
                assert errors in ((left, again) if name in DISCONNECT else ("",))
                guest.forget_stderr()
                assert guest.events.wait("finished")["corrupted_pages"] == 0
            else:
                assert (status, errors) == (1, f"balloon-guest: {words}\n")
                guest.forget_stderr()
                guest.process.returncode = 0
        proxy.events.wait("fault")
        sessions = len(proxy.events.all("connected"))
        for event in daemon.events.wait_for_count("connected", known + sessions)[known:]:
            daemon.settled(event["vm"])
        proxy.events.wait_for_count("disconnected", sessions)
    assert daemon.events.all("queue_stopped") == []
    assert daemon.stderr() == ""


def test_every_last_word_is_of_a_shipped_script() -> None:
    assert LAST_WORDS.keys() | DISCONNECT <= {path.stem for path in shipped_scripts()}


def test_disconnected_session_is_followed_by_another(daemon: DaemonProcess, tmp_path: Path) -> None:
    script = tmp_path / "cut.fault"
    script.write_text("after 2 chains of queue reporting: disconnect back-end")
    with ProxyProcess(tmp_path, daemon.socket_path, "--script", str(script), "--seed", "9") as proxy:
        with ProgramProcess("guest", *guest_options(proxy, seconds=60)) as guest:
            guest.events.wait_for_count("attached", 2)
            assert guest.stop() == 0
            assert guest.events.wait("finished")["corrupted_pages"] == 0
            assert guest.stderr().count("attached again") == 1
            guest.forget_stderr()
        assert [event["reason"] for event in proxy.events.wait_for_count("disconnected", 2)] == [
            "a rule disconnected the back-end",
            "the front-end closed its connection",
        ]
        (fault,) = proxy.events.all("fault")
        assert (fault["session"], fault["line"], fault["rule"]) == (1, 1, script.read_text())
        assert proxy.events.all("listening")[0]["seed"] == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_proxy_with_a_session_open(daemon: DaemonProcess, tmp_path: Path, number: int) -> None:
    with ProxyProcess(tmp_path, daemon.socket_path) as proxy, socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(proxy.socket_path))
        proxy.events.wait("connected")
        proxy.signal(number)
        assert proxy.wait() == 0
        assert front_end.recv(1) == b""
        assert proxy.events.wait("disconnected")["reason"] == "the proxy was ended"
    assert os.listdir(tmp_path) == []


def test_back_end_that_cannot_be_reached_ends_the_proxy(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "gone.sock"))
    with (
        ProxyProcess(tmp_path, tmp_path / "gone.sock") as proxy,
        socket.socket(socket.AF_UNIX) as front_end,
    ):
        front_end.connect(str(proxy.socket_path))
        assert proxy.wait() == 3
        assert proxy.stderr() == f"balloon-check: --connect {tmp_path}/gone.sock: Connection refused\n"
        proxy.forget_stderr()
        proxy.process.returncode = 0
