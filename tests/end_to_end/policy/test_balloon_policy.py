"""``balloon-policy`` at real daemons with emulated guests."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host.qmp.qmp_client import QmpClient
from protocol.units import MIB
from tests.harness.processes import ROOT, DaemonProcess, ProgramProcess, doomed_daemon, stall, until

MEMORY = 256 * MIB
PRESSED = ("mom", "--budget", "256M", "--interval", "0.2")
"""A guest of 256 MiB whose free memory is backed: MOM sees pressure until a fifth of the budget is free."""


def control(directory: Path) -> str:
    return str(directory / "control")


@contextlib.contextmanager
def guest_at(daemon: DaemonProcess, size: str = "240M") -> Iterator[ProgramProcess]:
    """A guest of 256 MiB that has used ``size`` of its memory, freed it, and does not report it."""
    options = ("--memory", "256M", "--reporter", "off", "--workload", f"memhog:size={size},hold=0", "--hold")
    with ProgramProcess("guest", "--socket-path", str(daemon.socket_path), *options) as guest:
        guest.events.wait("finished")
        yield guest
        guest.forget_stderr()  # that a daemon went away


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path, "--control", control(tmp_path)) as daemon:
        yield daemon


def policy(*options: str, **environment: str) -> ProgramProcess:
    return ProgramProcess("host.policy.live", *options, environment=environment)


def vms(directory: Path) -> list[dict[str, Any]]:
    with QmpClient(directory / "control") as client:
        answer: list[dict[str, Any]] = client.command("query-vms")
        return answer


def test_guest_shrinks_under_pressure_and_has_its_memory_back_at_the_end(daemon: DaemonProcess, tmp_path: Path) -> None:
    with guest_at(daemon) as guest:
        with policy(*PRESSED, "--control", control(tmp_path)) as running:
            guest.events.wait("inflate")
            decision = running.events.wait("decision")
            assert (decision["policy"], decision["dry_run"]) == ("mom", False)
            [seen] = decision["inputs"]["vms"].values()
            assert (seen["memory_bytes"], seen["balloon_bytes"]) == (MEMORY, 0)
            assert seen["free_bytes"] > 128 * MIB
            assert seen["statistics_age"] < 5
            assert seen["host_backed_bytes"] > 230 * MIB
            assert decision["inputs"]["host"]["budget_bytes"] == MEMORY
            [action] = decision["actions"]
            assert (action["action"], action["size"]) == ("balloon", pytest.approx(0.05 * MEMORY, abs=8192))
            until(lambda: vms(tmp_path)[0]["host-backed"] <= 0.82 * MEMORY, "a fifth of the budget is free")
            assert running.stdout().startswith("mom: host free")
        assert guest.events.wait("deflate")
        until(lambda: vms(tmp_path)[0]["balloon-actual"] == 0, "the balloon is empty")


@pytest.mark.parametrize("body", ["while True: pass", "time.sleep(1000)"])
def test_policy_that_never_answers_is_ended_by_a_signal(tmp_path: Path, body: str) -> None:
    (tmp_path / "slow_policy.py").write_text(
        "import pathlib, time\n"
        "class Slow:\n"
        "    name, interval = 'slow', 1.0\n"
        "    def decide(self, seen):\n"
        f"        pathlib.Path({str(tmp_path / 'asked')!r}).touch()\n"
        f"        {body}\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    with policy("slow_policy:Slow", "--control", control(tmp_path), PYTHONPATH=path) as running:
        until((tmp_path / "asked").exists, "the policy is asked")
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        running.forget_stderr()  # that there is no daemon


def test_balloons_may_be_left(daemon: DaemonProcess, tmp_path: Path) -> None:
    with guest_at(daemon) as guest:
        with policy(*PRESSED, "--control", control(tmp_path), "--leave"):
            guest.events.wait("inflate")
        assert vms(tmp_path)[0]["balloon-requested"] > 0


def test_one_decision_stays(daemon: DaemonProcess, tmp_path: Path) -> None:
    with guest_at(daemon) as guest, policy(*PRESSED, "--control", control(tmp_path), "--once") as once:
        assert once.wait() == 0
        guest.events.wait("inflate")
        assert len(once.events.all("decision")) == 1
        assert vms(tmp_path)[0]["balloon-requested"] == pytest.approx(0.05 * MEMORY, abs=8192)


def test_dry_run_only_says_what_it_would_do(daemon: DaemonProcess, tmp_path: Path) -> None:
    with guest_at(daemon), policy(*PRESSED, "--control", control(tmp_path), "--once", "--dry-run") as dry:
        assert dry.wait() == 0
        assert dry.events.all("decision")[0]["dry_run"] is True
        assert "balloon 12.8 MiB" in dry.stdout()
        assert vms(tmp_path)[0]["balloon-requested"] == 0


def test_free_memory_is_reclaimed_under_pressure(daemon: DaemonProcess, tmp_path: Path) -> None:
    options = ("reclaim-on-pressure", "--control", control(tmp_path), "--budget", "256M", "--once")
    with guest_at(daemon), policy(*options) as reclaiming:
        assert reclaiming.wait() == 0
        event = daemon.events.wait("reclaim")
        assert event["discarded_bytes"] > 128 * MIB
        assert vms(tmp_path)[0]["balloon-requested"] == 0


def test_many_daemons_are_one_host(tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    first, second = (DaemonProcess(place, "--control", control(place)) for place in places)
    with first, second, guest_at(first), guest_at(second):
        options = ("mom", "--budget", "512M", "--interval", "0.2", "--control", *map(control, places))
        with policy(*options) as running:
            until(lambda: all(vms(place)[0]["balloon-actual"] > 0 for place in places), "both guests shrink")
            decision = running.events.wait("decision")
            assert len(decision["inputs"]["vms"]) == len(decision["actions"]) == 2
        for place in places:
            until(lambda place=place: vms(place)[0]["balloon-actual"] == 0, "the balloon is empty")  # type: ignore[misc]


OWN = """
from host.policy.policy import Decision, SetBalloon

class Hundred:
    name = "hundred"
    interval = 0.1
    def decide(self, seen):
        return Decision(tuple(SetBalloon(vm, 100 << 20) for vm in seen.vms), "a hundred")

class Failing(Hundred):
    calls = 0
    def decide(self, seen):
        self.calls += 1
        if self.calls > 2:
            raise RuntimeError("no idea")
        return super().decide(seen)
"""


def own_policy(directory: Path, name: str) -> ProgramProcess:
    """Run a policy of a module that is found on PYTHONPATH."""
    (directory / "greedy.py").write_text(OWN)
    path = f"{ROOT}{os.pathsep}{directory}"
    return policy(name, "--control", control(directory), PYTHONPATH=path)


def test_daemon_that_dies_is_said_once_and_its_successor_is_served(tmp_path: Path) -> None:
    with own_policy(tmp_path, "greedy:Hundred") as running:
        running.events.wait_for_count("decision", 3)
        with doomed_daemon(tmp_path, "--control", control(tmp_path)) as first, guest_at(first, "80M") as guest:
            guest.events.wait("inflate")
            first.process.kill()
            running.events.wait_for_count("decision", len(running.events.all("decision")) + 3)
            guest.events.wait("detached")
            with DaemonProcess(tmp_path, "--control", control(tmp_path)):
                until(
                    lambda: [vm["balloon-requested"] for vm in vms(tmp_path)] == [100 * MIB], "the successor is asked"
                )
                lines = running.stderr().splitlines()
                assert guest.stop() == 0
        running.forget_stderr()
    assert ["the daemon answers again" in line for line in lines] == [False, True, False, True]
    assert all("(tried again at every decision)" in line for line in lines[::2])


def test_own_policy_that_fails_is_contained(daemon: DaemonProcess, tmp_path: Path) -> None:
    with guest_at(daemon), own_policy(tmp_path, "greedy:Failing") as running:
        until(lambda: vms(tmp_path)[0]["balloon-actual"] == 100 * MIB, "the balloon is as large as the policy wants")
        decision = running.events.wait("decision", problem="RuntimeError: no idea")
        assert [action["size"] for action in decision["actions"]] == [100 * MIB]
        running.events.wait_for_count("decision", 8)
        assert running.stderr() == ("balloon-policy: policy hundred: RuntimeError: no idea; the last decision stands\n")
        running.forget_stderr()


def test_guest_that_hangs_delays_no_other_for_long(daemon: DaemonProcess, tmp_path: Path) -> None:
    with guest_at(daemon), guest_at(daemon) as hanging:
        stall(hanging.pid)
        try:
            options = ("mom", "--budget", "512M", "--interval", "0.2", "--control", control(tmp_path))
            with policy(*options) as running:
                running.events.wait_for_count("decision", 4)
                views = running.events.all("decision")[-1]["inputs"]["vms"].values()
                ages = [view["statistics_age"] for view in views]
                assert ages[1] is None
                assert ages[0] < 1.5
        finally:
            hanging.signal(signal.SIGCONT)


def test_interrupt_gives_back_too(daemon: DaemonProcess, tmp_path: Path) -> None:
    with guest_at(daemon) as guest:
        running = policy(*PRESSED, "--control", control(tmp_path))
        guest.events.wait("inflate")
        running.signal(signal.SIGINT)
        assert running.wait() == 130
        running.kill()
        until(lambda: vms(tmp_path)[0]["balloon-actual"] == 0, "the balloon is empty")
