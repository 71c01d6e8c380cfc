"""What each command does and answers, with virtual machines that have no guest."""

import asyncio
import json
import logging
import os
import time
from typing import Any

import pytest

from host.control.control_commands import ControlCommands
from host.control.guest_statistics import GuestStatistics
from host.control.qom import STAT_NAMES, UNKNOWN
from host.control.reclaim_progress import ReclaimLimits
from host.control.vm_facts import VmInfo, logical_size
from host.inhibition.inhibition import Inhibition, Inhibitor
from host.qmp.qmp import Arguments, Request
from host.vhost_user.device_setup import DeviceSetup
from protocol.balloon_statistics import StatisticTag
from protocol.virtio_balloon import QueueDialect
from tests.host.control.fake_vm import FakeVm, fake

GIB = 1 << 30
NOW = 1_700_000_000.75
FURTHER: Any = {
    "acknowledge": {"counts": [0] * 15, "seconds": 0.0},
    "discard": {"counts": [0] * 15, "seconds": 0.0},
    "discard-error": None,
    "descriptors-seen": True,
    "inflated-bytes": 0,
    "deflated-bytes": 0,
    "hinted-bytes": 0,
    "refaulted-bytes": 0,
    "front-end": "running",
    "health": [],
    "inhibited": None,
    "keeps-pages": None,
    "mean-range": 4 << 20,
    "offered": ["page-reporting", "packed"],
    "page-size": 4096,
    "queues": {
        "reporting": {"number": 2, "state": "running", "set-up": True, "why": None, "running-for": 2.5},
    },
    "refused-bytes": {"unaligned": 1 << 20},
    "statistics": {},
    "statistics-age": None,
    "statistics-unanswered": 0.0,
    "status": ["ACKNOWLEDGE", "DRIVER", "DRIVER_OK"],
}
"""What `query-vms` has of a fake machine for a diagnosis and for metrics."""


def perform(vms: dict[int, FakeVm], name: str, **arguments: Any) -> Any:
    """Return what a command returns, or class and description of its error. A dash in a name is written ``_``."""
    members = {key.replace("_", "-"): value for key, value in arguments.items()}
    commands = ControlCommands(vms, lambda: NOW, {"package": "test"})
    request = Request(name=name, arguments=Arguments(members), reply={"id": 9})
    answer = json.loads(asyncio.run(commands.perform(request)))
    assert answer.pop("id") == 9
    if "error" in answer:
        return answer["error"]["class"], answer["error"]["desc"]
    return answer["return"]


def test_unknown_commands_and_unknown_parameters() -> None:
    text = "unknown command 'device_add' (query-commands lists them)"
    assert perform({}, "device_add") == ("CommandNotFound", text)
    for name in ("query-vms", "query-version", "query-commands"):
        assert perform({}, name, x=1) == ("GenericError", "unexpected parameter 'x'")


def test_commands_are_all_listed() -> None:
    names = [entry["name"] for entry in perform({}, "query-commands")]
    assert names == sorted(names)
    assert {"qmp_capabilities", "balloon", "query-balloon", "reclaim", "qom-get"} <= set(names)
    for name in set(names) - {"qmp_capabilities"}:
        assert "CommandNotFound" not in perform({}, name)


def test_virtual_machines_are_listed() -> None:
    bare = DeviceSetup(None, QueueDialect.NEGOTIATED, {})
    vms = {
        3: fake(num_pages=1 << 17, target_pages=3 << 16, actual=5),
        1: fake(memory_bytes=0, driver_ready=False, setup=bare),
    }
    assert perform({}, "query-vms") == []
    first, second = perform(vms, "query-vms")
    assert (first["vm"], first["memory"], first["guest-actual"], first["driver-ready"]) == (1, 0, 0, False)
    assert (first["ring"], first["queue-numbers"], first["kicks"]) == (None, "negotiated", {})
    assert second == {
        **FURTHER,
        "vm": 3,
        "pid": 4711,
        "name": "qemu",
        "age": 12.5,
        "host-backed": 5 << 20,
        "reports": 3,
        "reported-bytes": 12 << 20,
        "discarded-bytes": 8 << 20,
        "refused": {"unaligned": 2},
        "last-report": 1.25,
        "memory": GIB,
        "guest-memory": GIB,
        "guest-target": GIB // 2,
        "guest-actual": GIB - 5 * 4096,
        "balloon-requested": GIB * 3 // 4,
        "balloon-target": GIB // 2,
        "balloon-actual": 5 * 4096,
        "features": ["page-reporting", "packed"],
        "driver-ready": True,
        "ring": "packed",
        "queue-numbers": "offered",
        "kicks": {"inflate": "eventfd", "reporting": "in-band"},
    }


@pytest.mark.parametrize(
    ("value", "pages"), [(GIB, 0), (2 * GIB, 0), (1 << 63, 0), (GIB - 4095, 0), (GIB - 4096, 1), (1, (1 << 18) - 1)]
)
def test_balloon_sets_the_size_that_the_guest_is_left_with(value: int, pages: int) -> None:
    vm = FakeVm()
    assert perform({7: vm}, "balloon", value=value) == {}
    assert vm.facts.num_pages == pages


def test_balloon_larger_than_its_field_is_as_large_as_that() -> None:
    vm = fake(memory_bytes=1 << 45)
    assert perform({7: vm}, "balloon", value=1) == {}
    assert vm.facts.num_pages == (1 << 32) - 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"value": 0}, ("GenericError", "parameter 'value' has to be a size in bytes, above 0")),
        ({"value": -1}, ("GenericError", "parameter 'value' has to be a size in bytes, above 0")),
        ({"value": "1G"}, ("GenericError", "parameter 'value' has to be an integer")),
        ({}, ("GenericError", "parameter 'value' is missing")),
        ({"value": 1, "vm": 2}, ("DeviceNotFound", "vm 2 is not connected")),
        ({"value": 1, "size": 2}, ("GenericError", "unexpected parameter 'size'")),
    ],
)
def test_balloon_refuses(arguments: dict[str, Any], error: tuple[str, str]) -> None:
    vm = fake(num_pages=77)
    assert perform({7: vm}, "balloon", **arguments) == error
    assert vm.facts.num_pages == 77


def test_memory_of_the_guest_may_be_stated() -> None:
    """An NVDIMM is in the memory table, and what the firmware shadows is not."""
    vm = fake()
    assert perform({7: vm}, "balloon", value=GIB // 4, guest_memory=GIB // 2) == {}
    assert vm.facts.num_pages << 12 == GIB // 4
    assert perform({7: vm}, "query-balloon") == {"actual": GIB // 2}
    error = ("GenericError", "parameter 'guest-memory' has to be a size in bytes, or 0")
    assert perform({7: vm}, "balloon", value=GIB, guest_memory=-1) == error


def test_commands_that_need_the_memory_table() -> None:
    vm = fake(memory_bytes=0)
    error = ("DeviceNotActive", "vm 7 has not shared its memory yet")
    assert perform({7: vm}, "balloon", value=1) == error
    assert perform({7: vm}, "query-balloon") == error


def test_disconnect_ends_one_session() -> None:
    one, two = FakeVm(), FakeVm()
    assert perform({}, "disconnect") == ("DeviceNotActive", "no virtual machine is connected")
    assert perform({5: one, 6: two}, "disconnect")[0] == "GenericError"
    assert perform({5: one, 6: two}, "disconnect", vm=6) == {}
    assert (one.disconnected, two.disconnected) == (False, True)


def test_virtual_machine_is_chosen_by_its_number() -> None:
    one, two = fake(actual=1), fake(actual=2)
    assert perform({}, "query-balloon") == ("DeviceNotActive", "no virtual machine is connected")
    assert perform({5: one}, "query-balloon") == {"actual": GIB - 4096}
    assert perform({5: one, 6: two}, "query-balloon", vm=6) == {"actual": GIB - 8192}
    several = perform({5: one, 6: two}, "query-balloon")
    assert several == ("GenericError", "parameter 'vm' is missing: 2 virtual machines are connected")
    assert perform({5: one}, "query-balloon", vm=True) == ("GenericError", "parameter 'vm' has to be an integer")


def test_guest_that_claims_more_than_it_has() -> None:
    assert logical_size(4096, (1 << 32) - 1) == 0


def test_fresh_statistics() -> None:
    vm = FakeVm(fresh=GuestStatistics({"memfree": 123, "majflt": 4}, time.monotonic() - 2.0))
    answer = perform({1: vm}, "query-guest-statistics")
    assert 2.0 <= answer.pop("age") < 60.0
    assert answer == {"vm": 1, "statistics": {"memfree": 123, "majflt": 4}}
    vm.fresh = None
    error = perform({1: vm}, "query-guest-statistics")
    assert error == ("GenericError", "the guest gave no statistics within 5 s")


@pytest.mark.parametrize("command", ["query-guest-statistics", "reclaim"])
def test_commands_that_need_a_driver(command: str) -> None:
    vm = fake(driver_ready=False)
    assert perform({1: vm}, command) == ("DeviceNotActive", "vm 1 has no driver that is ready")


@pytest.mark.parametrize(("arguments", "method"), [({}, "hint"), ({"method": "inflate"}, "inflate")])
def test_reclaim(arguments: dict[str, str], method: str) -> None:
    vm = FakeVm()
    vm.release.set()
    assert perform({1: vm}, "reclaim", **arguments) == {
        "vm": 1,
        "method": method,
        "offered-bytes": 3 << 20,
        "discarded-bytes": 2 << 20,
        "seconds": 0.25,
        "complete": True,
        "stopped-by": None,
    }


def test_reclaim_by_an_unknown_method() -> None:
    assert perform({1: FakeVm()}, "reclaim", method="ask") == (
        "GenericError",
        "parameter 'method' has to be hint or inflate",
    )


def test_objects_are_found_from_the_root() -> None:
    vms = {2: FakeVm(), 10: FakeVm()}
    assert perform(vms, "qom-list", path="/") == [{"name": "machine", "type": "child<container>"}]
    assert perform(vms, "qom-list", path="/machine") == [{"name": "peripheral", "type": "child<container>"}]
    names = [entry["name"] for entry in perform(vms, "qom-list", path="/machine/peripheral/")]
    assert names == ["vm2", "vm10"]
    for entry in perform(vms, "qom-list", path="/machine/peripheral/vm2"):
        perform(vms, "qom-get", path="/machine/peripheral/vm2", property=entry["name"])
    assert perform(vms, "qom-get", path="/machine/peripheral/vm2", property="type") == "virtio-balloon-device"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "vm2",
        "/machine/vm2",
        "/machine/peripheral/vm",
        "/machine/peripheral/vm3",
        "/machine/peripheral/vm02",
        "/machine/peripheral/vm²",
        "/machine/peripheral/vm" + "9" * 5000,
        "/machine/peripheral/2",
    ],
)
def test_objects_that_are_not_there(path: str) -> None:
    error_class, text = perform({2: FakeVm()}, "qom-get", path=path, property="type")
    assert error_class == "DeviceNotFound"
    assert len(text) < 100


def test_guest_stats_have_qemus_shape() -> None:
    path = "/machine/peripheral/vm1"
    vm = FakeVm()
    before = perform({1: vm}, "qom-get", path=path, property="guest-stats")
    assert before == {"stats": dict.fromkeys(STAT_NAMES.values(), UNKNOWN), "last-update": 0}
    vm.last_statistics = GuestStatistics({"memfree": 5, "memtot": 6, "swap_in": 0}, time.monotonic() - 1_000_000.0)
    after = perform({1: vm}, "qom-get", path=path, property="guest-stats")
    assert 1_698_999_940 < after["last-update"] <= 1_699_000_000
    known = {name: value for name, value in after["stats"].items() if value != UNKNOWN}
    assert known == {"stat-free-memory": 5, "stat-total-memory": 6, "stat-swap-in": 0}


def test_statistics_all_have_a_name() -> None:
    assert STAT_NAMES.keys() == set(StatisticTag)


def test_polling_interval() -> None:
    arguments = {"path": "/machine/peripheral/vm1", "property": "guest-stats-polling-interval"}
    vm = FakeVm()
    assert perform({1: vm}, "qom-set", **arguments, value=5) == {}
    assert (vm.statistics_interval, perform({1: vm}, "qom-get", **arguments)) == (5, 5)
    for value in (-1, 1 << 32, "5", True, None, 0.5):
        error_class, text = perform({1: vm}, "qom-set", **arguments, value=value)
        assert (error_class, vm.statistics_interval) == ("GenericError", 5)
        assert "from 0 to 4294967295" in text


@pytest.mark.parametrize(("name", "text"), [("guest-stats", "cannot be written"), ("x", "has no property 'x'")])
def test_properties_that_cannot_be_written(name: str, text: str) -> None:
    arguments = {"path": "/machine/peripheral/vm1", "property": name}
    assert text in perform({1: FakeVm()}, "qom-set", **arguments, value=1)[1]
    assert perform({1: FakeVm()}, "qom-set", **arguments)[1] == "parameter 'value' is missing"


def test_internal_error_fails_one_command(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: FakeVm) -> VmInfo:
        raise ZeroDivisionError

    monkeypatch.setattr(FakeVm, "info", broken)
    assert perform({1: FakeVm()}, "query-vms") == ("GenericError", "internal error")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


# -- inhibiting, and the daemon itself ---------------------------------------------------------------------------------


def test_discards_are_inhibited_and_allowed() -> None:
    vm = fake()
    assert perform({1: vm}, "inhibit", why="postcopy") == {}
    (entry,) = perform({1: vm}, "query-vms")
    assert entry["inhibited"] == {"by": "operator", "why": "postcopy"}
    assert entry["health"] == ["inhibited"]
    assert perform({1: vm}, "allow") == {"vm": 1, "inhibited": None}
    (entry,) = perform({1: vm}, "query-vms")
    assert (entry["inhibited"], entry["health"]) == (None, [])


def test_what_the_daemon_finds_counts_unless_it_is_forced() -> None:
    vm = fake()
    vm.found = Inhibition(Inhibitor.DAEMON, "a VFIO device")
    assert perform({1: vm}, "allow") == {"vm": 1, "inhibited": {"by": "daemon", "why": "a VFIO device"}}
    assert perform({1: vm}, "allow", force=True) == {"vm": 1, "inhibited": None}


@pytest.mark.parametrize("why", ["a\nb", "x" * 201])
def test_reason_is_one_line(why: str) -> None:
    text = "parameter 'why' has to be at most 200 printable characters"
    assert perform({1: fake()}, "inhibit", why=why) == ("GenericError", text)


def test_types_of_arguments_are_checked() -> None:
    assert perform({1: fake()}, "allow", force=1) == ("GenericError", "parameter 'force' has to be true or false")


def test_daemon_says_how_it_is() -> None:
    answer = perform({1: fake(), 2: fake()}, "query-status")
    assert (answer["pid"], answer["vms"], answer["events"]) == (os.getpid(), 2, "written")
    assert answer["latency-bounds"] == sorted(answer["latency-bounds"])


def test_log_level_is_set() -> None:
    before = logging.getLogger().level
    try:
        for level in ("off", "error", "warning", "info", "debug"):
            assert perform({}, "set-log-level", level=level) == {}
            assert perform({}, "query-status")["log-level"] == level
        _, text = perform({}, "set-log-level", level="loud")
        assert text == "parameter 'level' has to be off or error or warning or info or debug, not 'loud'"
    finally:
        logging.getLogger().setLevel(before)


def test_reclaim_has_limits() -> None:
    vm = FakeVm()
    vm.release.set()
    perform({1: vm}, "reclaim", floor=5, pace=7, stop_on_refault=True)
    assert vm.limits == ReclaimLimits(floor=5, pace=7, stop_on_refault=True)
    text = "parameter 'pace' has to be a size in bytes, or 0"
    assert perform({1: vm}, "reclaim", pace=-1) == ("GenericError", text)
