"""The virtual machine monitor in this process, at a daemon: what it refuses, what it says, when it ends."""

import asyncio
import contextlib
import gc
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from guest.command_line import make_parser, vmm_options
from guest.ledger.ledger import CAUSES
from guest.mm.views.memory_map import CELLS, LEVELS, decode
from guest.vmm import VirtualMachine
from guest.vmm_options import VmmOptions
from guest.workloads.churn import Churn
from guest.workloads.memhog import Idle, Memhog
from guest.workloads.workload import Workload
from protocol.errors import SessionEnded, UsageError
from protocol.memory import PAGE_SIZE
from protocol.process.events import EventLog
from tests.harness.processes import DEADLINE, DaemonProcess

MIB: Final = 1 << 20


class EventStream(io.StringIO):
    """Text that sets ``changed`` with everything written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Event()

    def write(self, text: str) -> int:
        self.changed.set()
        return super().write(text)


class Run:
    """A machine and what it has said."""

    def __init__(self, socket_path: Path, *workloads: Workload, **changes: Any) -> None:
        self._stream = EventStream()
        options: dict[str, Any] = {"memory": 64 * MIB, "reporter": "boundary", "high_water_mark": 1, **changes}
        self.machine = VirtualMachine(
            VmmOptions(socket_path=socket_path, workloads=workloads, **options),
            EventLog(self._stream, asyncio.get_running_loop().time),
        )

    async def run(self) -> int:
        """Run the machine to its end; return its exit status."""
        async with asyncio.timeout(3 * DEADLINE):
            return await self.machine.run()

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return all events so far, or those of one name."""
        found = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [event for event in found if name in (None, event["event"])]

    async def wait_for(self, name: str) -> None:
        """Wait until there is such an event."""
        async with asyncio.timeout(DEADLINE):
            while not self.events(name):
                self._stream.changed.clear()
                await self._stream.changed.wait()

    async def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until an event brings about what ``reached`` says, or for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE):
                while not reached():
                    self._stream.changed.clear()
                    await self._stream.changed.wait()

    def causes(self) -> set[str]:
        """Return the causes that hold memory in the last sample."""
        return {cause for cause, size in self.events("memory")[-1]["ledger"].items() if size}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon
    gc.collect()  # machines end with their process; here, the memory of many would stay mapped for other tests


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"reporter": "rotation"}, "the rotation reporter has no high-water mark"),
        ({"reporter": "sieve"}, "no page reporter is called 'sieve'"),
        ({"reporting_order": 11}, "reporting order 11"),
        ({"reporting_capacity": 2}, "reporting capacity 2 is above the high-water mark of 1"),
        ({"memory": 8 * PAGE_SIZE, "reporter": "off"}, "too little memory for its virtqueues"),
    ],
)
async def test_options_that_no_machine_can_have(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=complaint):
        Run(tmp_path / "socket", **changes)


@pytest.mark.asyncio
async def test_machine_without_a_back_end_does_not_boot(tmp_path: Path) -> None:
    run = Run(tmp_path / "socket", Idle())
    with pytest.raises(SessionEnded, match="no back-end at"):
        await run.run()
    assert run.events() == []


@pytest.mark.asyncio
async def test_events_tell_a_life_from_power_on_to_power_off(
    daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(daemon.socket_path, Memhog(size=8 * MIB, hold=0.05, rest=0.05), memory=64 * MIB)
    assert await run.run() == 0
    names = [event["event"] for event in run.events() if event["event"] not in ("memory", "report")]
    assert names == ["attached", "booted", *["phase"] * 4, "finished", "detached"]
    (booted,), first = run.events("booted"), run.events("memory")[0]
    assert (booted["pid"], booted["memory_bytes"], booted["reporter"]) == (os.getpid(), 64 * MIB, "boundary")
    assert 63 * MIB < first["free_bytes"] < 64 * MIB  # the rings
    assert (first["allocated_bytes"], first["reported_bytes"]) == (0, 0)
    assert [event["free_bytes"] for event in run.events("memory")][-1] <= first["free_bytes"]
    assert capsys.readouterr().out == f"verified {8 * MIB // PAGE_SIZE} pages, corrupted 0\n"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("changes", "causes"),
    [
        ({"reporter": "boundary", "high_water_mark": 32}, {"high_residue"}),
        ({"reporter": "scan"}, set()),
        ({"reporter": "rotation", "high_water_mark": None, "reporting_delay": 60}, {"delay"}),
        ({"reporter": "rotation", "high_water_mark": None, "memory": 64 * MIB}, {"watermark"}),
        ({"reporter": "off", "high_water_mark": None}, {"inhibited"}),
        ({"reporter": "off", "high_water_mark": None, "cpus": 1, "zones": "x86-64"}, {"inhibited"}),
        ({"reporter": "scan", "zones": "x86-64", "pci_hole": "pc", "memory": 4 << 30}, set()),
        ({"reporter": "boundary", "page_poison": 0xAAAA_AAAA}, {"poison", "below_order"}),
    ],
)
async def test_ledger_says_what_holds_free_memory(
    changes: dict[str, Any], causes: set[str], daemon: DaemonProcess
) -> None:
    options = {"memory": 128 * MIB, "ledger": True, **changes}
    run = Run(daemon.socket_path, Memhog(size=32 * MIB, hold=0.3), hold=True, **options)
    running = asyncio.create_task(run.run())
    await run.wait_for("finished")
    await run.wait_until(lambda: run.causes() == causes)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    events = run.events("memory")
    for event in events:
        assert list(event["ledger"]) == [str(cause) for cause in CAUSES]
        assert min(event["ledger"].values()) >= 0
        assert sum(event["ledger"].values()) == event["not_returned_bytes"]
        assert event["not_returned_bytes"] + event["returned_bytes"] >= event["free_bytes"]
        assert event["page_cache_bytes"] == 0
    last = events[-1]
    assert run.causes() == causes
    # All that the host has is in use, or free and booked: the rings are neither, and are touched in part.
    rings = options["memory"] - last["free_bytes"]
    assert 0 < last["resident_bytes"] - last["not_returned_bytes"] <= rings


def test_ledger_is_an_option() -> None:
    words = ["--socket-path", "socket"]
    assert not vmm_options(make_parser().parse_args(words)).ledger
    assert vmm_options(make_parser().parse_args([*words, "--ledger"])).ledger


@pytest.mark.asyncio
async def test_ledger_is_only_there_when_asked_for(daemon: DaemonProcess) -> None:
    run = Run(daemon.socket_path, Idle(seconds=0.05))
    assert await run.run() == 0
    assert not any("ledger" in event or "not_returned_bytes" in event for event in run.events("memory"))


@pytest.mark.asyncio
async def test_workloads_run_side_by_side_with_seeds_of_their_own(daemon: DaemonProcess) -> None:
    churn = Churn(size=4 * MIB, seconds=0.2, lifetime=0.05)
    alone = []
    for seed in (5, 6):
        run = Run(daemon.socket_path, churn, seed=seed, reporter="off", high_water_mark=None)
        assert await run.run() == 0
        alone.append(run.events("finished")[0]["verified_pages"])
    both = Run(daemon.socket_path, churn, churn, seed=5, reporter="off", high_water_mark=None)
    assert await both.run() == 0
    assert alone[0] != alone[1]
    assert both.events("finished")[0]["verified_pages"] == sum(alone)


@pytest.mark.asyncio
@pytest.mark.parametrize("hold", [False, True])
async def test_signal_is_a_good_end(hold: bool, daemon: DaemonProcess) -> None:
    run = Run(daemon.socket_path, Memhog(size=8 * MIB, hold=0 if hold else 3600), hold=hold)
    running = asyncio.create_task(run.run())
    await run.wait_for("finished" if hold else "booted")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert [event["reason"] for event in run.events("detached")] == ["machine powered off"]


@pytest.mark.asyncio
async def test_memory_that_ran_out_is_a_bad_end_of_one_workload_only(
    daemon: DaemonProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guest.workloads.workload.RETRIES", 2)
    greedy, modest = Memhog(size=256 * MIB, hold=0), Memhog(size=2 * MIB, hold=0.5)
    run = Run(daemon.socket_path, modest, greedy)
    assert await run.run() == 1
    assert len(run.events("out_of_memory")) == 1
    assert [event["name"] for event in run.events("phase")].count("rest") == 1
    assert run.events("finished")[0]["corrupted_pages"] == 0
    assert capsys.readouterr().err == "balloon-guest: out of memory: no block of order 9 came free\n"


@pytest.mark.asyncio
async def test_failed_background_task_fails_the_run(daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A background task that failed is found out when the work is done, not left lying."""
    run = Run(daemon.socket_path, Idle(seconds=0.05))

    async def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("guest.balloon.reporting_worker.ReportingWorker.run", lambda _: broken())
    with pytest.raises(ZeroDivisionError):
        await run.run()
    assert [event["reason"] for event in run.events("detached")] == ["machine powered off"]


@pytest.mark.asyncio
async def test_maps_of_memory_are_events(daemon: DaemonProcess) -> None:
    run = Run(daemon.socket_path, Memhog(size=32 * MIB, hold=3600), memory_map=0.05)

    def used() -> list[int]:
        maps = run.events("memory_map")
        return [CELLS - decode(event["free"]).count(LEVELS) - decode(event["reported"]).count(LEVELS) for event in maps]

    running = asyncio.create_task(run.run())
    await run.wait_until(lambda: max(used(), default=0) >= CELLS // 2)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert max(used()) >= CELLS // 2 > used()[0]
    maps = run.events("memory_map")
    assert maps[0]["cell_bytes"] == 64 * MIB // CELLS
    assert max(decode(event["resident"]).count(LEVELS) for event in maps) >= CELLS // 2
    assert not any(decode(maps[-1]["balloon"]))


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "nan", "0.01"])
def test_an_interval_that_is_too_short(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--socket-path", "socket", "--memory-map", seconds])
    assert "is not a number of seconds from 0.05 on" in capsys.readouterr().err
