"""Configuring rings: wrong values, every order, starting, stopping, replacing descriptors while a ring runs."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.memory import PAGE_SIZE, UserAddress
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import VringAddress, VringFile, VringState
from protocol.virtio import PROTOCOL_FEATURES, FeatureBit, feature_mask
from tests.end_to_end.conftest import Scene
from tests.harness.processes import process_state, unchanged_fds, until
from tests.harness.virtual_machine import (
    DATA_AT,
    MIB,
    RAM_BYTES,
    REPORTING,
    USER_BASE,
    WANTED,
    VirtualMachine,
)

NUM = FrontendRequest.SET_VRING_NUM
ADDR = FrontendRequest.SET_VRING_ADDR
BASE = FrontendRequest.SET_VRING_BASE
GET_BASE = FrontendRequest.GET_VRING_BASE
KICK = FrontendRequest.SET_VRING_KICK
CALL = FrontendRequest.SET_VRING_CALL
ERR = FrontendRequest.SET_VRING_ERR
ENABLE = FrontendRequest.SET_VRING_ENABLE

NO_EVENT_IDX = WANTED & ~feature_mask(FeatureBit.RING_EVENT_IDX)


def address_of(machine: VirtualMachine) -> VringAddress:
    """Return the right addresses of the reporting queue, for a test to change."""
    payload, _ = machine.reporting.messages()[ADDR]
    assert isinstance(payload, VringAddress)
    return payload


def assert_untouched_by(machine: VirtualMachine, offset: int = DATA_AT) -> None:
    """Report a page on a ring that must not run, look that nothing happens to it."""
    machine.ram.touch(offset, PAGE_SIZE)
    machine.submit([(offset, PAGE_SIZE)])
    assert machine.ask(FrontendRequest.GET_QUEUE_NUM) == 5
    assert machine.reporting.driver.get_used() is None
    assert offset in machine.ram.pages()


def assert_served(machine: VirtualMachine, offset: int = DATA_AT) -> None:
    """Wait for the page of :func:`assert_untouched_by` to be released after all."""
    machine.reporting.collect()
    assert offset not in machine.ram.pages()


@pytest.mark.parametrize("index", [5, 255, 256, 0x10000, 0xFFFFFFFF])
@pytest.mark.parametrize("request_number", [NUM, BASE, ADDR, ENABLE, KICK, CALL, ERR])
def test_queue_that_does_not_exist(scene: Scene, request_number: FrontendRequest, index: int) -> None:
    machine = scene.machine()
    with unchanged_fds(scene.daemon.pid):
        if request_number is ADDR:
            assert machine.ask(ADDR, replace(address_of(machine), index=index)) == 1
        elif request_number in (KICK, CALL, ERR):
            file = VringFile(index & 0xFF | 0x80, True)  # the form has eight bits for the queue
            assert machine.ask(request_number, file, [machine.reporting.kick_fd]) == 1
        else:
            assert machine.ask(request_number, VringState(index, 1)) == 1
    scene.expect(machine, ("message_refused", request_number.name))
    machine.check_alive()


@pytest.mark.parametrize("size", [0, 3, 129, 65536, 0xFFFFFFFF])
def test_size_that_no_ring_has_keeps_the_old_one(scene: Scene, size: int) -> None:
    machine = scene.machine(run=False)
    machine.set_memory()
    messages = machine.reporting.messages()
    assert machine.ask(NUM, messages.pop(NUM)[0]) == 0
    assert machine.ask(NUM, VringState(REPORTING, size)) == 1
    machine.ask_each(messages)
    machine.check_alive()
    scene.expect(machine, ("message_refused", "SET_VRING_NUM"))


def test_largest_ring_is_taken(scene: Scene) -> None:
    machine = scene.machine()
    address = replace(
        address_of(machine),
        descriptor=UserAddress(USER_BASE + 2 * MIB),
        available=UserAddress(USER_BASE + 3 * MIB),
        used=UserAddress(USER_BASE + 4 * MIB),
    )
    messages = machine.reporting.messages() | {NUM: (VringState(REPORTING, 32768), ()), ADDR: (address, ())}
    machine.ask_each(messages)
    assert machine.ask(GET_BASE, VringState(REPORTING, 0)) == VringState(REPORTING, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"descriptor": UserAddress(USER_BASE + 8)},
        {"available": UserAddress(USER_BASE + 0x4001)},
        {"used": UserAddress(USER_BASE + 0x6002)},
        {"descriptor": UserAddress(0)},
        {"available": UserAddress(USER_BASE + RAM_BYTES)},
        {"used": UserAddress((1 << 64) - 16)},
    ],
)
def test_addresses_that_cannot_be_a_rings(scene: Scene, change: dict[str, UserAddress]) -> None:
    machine = scene.machine()
    assert machine.ask(ADDR, replace(address_of(machine), **change)) == 1
    scene.expect(machine, ("message_refused", "SET_VRING_ADDR"))
    machine.reporting.renew()
    machine.ask_each(machine.reporting.messages())
    machine.check_alive()


@pytest.mark.parametrize("part", ["descriptor", "available", "used"])
def test_ring_that_sticks_out_of_the_memory_does_not_start(scene: Scene, part: str) -> None:
    machine = scene.machine(run=False)
    machine.set_memory()
    address = replace(address_of(machine), **{part: UserAddress(USER_BASE + RAM_BYTES - 16)})
    messages = machine.reporting.messages() | {ADDR: (address, ())}
    payload, _ = messages.pop(ENABLE)
    machine.ask_each(messages)
    assert machine.ask(ENABLE, payload) == 1
    scene.expect(machine, ("queue_stopped", "2"), ("message_refused", "SET_VRING_ENABLE"))
    assert_untouched_by(machine)


def test_ring_starts_after_any_order_of_configuration(scene: Scene) -> None:
    machine = scene.machine()
    queue = machine.reporting
    for order in itertools.permutations((NUM, BASE, ADDR, CALL)):
        assert machine.ask(GET_BASE, VringState(REPORTING, 0)) is not None
        queue.renew()
        messages = queue.messages()
        machine.ask_each({request: messages[request] for request in (*order, KICK, ENABLE)})
        machine.check_alive()


@pytest.mark.parametrize("request_number", [NUM, BASE, ADDR])
def test_started_ring_that_is_configured_again_waits_for_its_kick(
    scene: Scene, request_number: FrontendRequest
) -> None:
    machine = scene.machine()
    machine.check_alive()
    messages = machine.reporting.messages(base=1)
    payload, _ = messages[request_number]
    if request_number is ADDR:
        assert machine.ask(ADDR, replace(address_of(machine), used=UserAddress(USER_BASE + MIB))) == 0
    assert machine.ask(request_number, payload) == 0
    assert_untouched_by(machine, DATA_AT + MIB)
    assert machine.ask(KICK, *messages[KICK]) == 0
    assert_served(machine, DATA_AT + MIB)


def test_addresses_set_again_on_a_running_ring_change_nothing(scene: Scene) -> None:
    machine = scene.machine()
    for flags in (1, 0):
        assert machine.ask(ADDR, replace(address_of(machine), flags=flags)) == 0
        machine.check_alive()


def test_upper_bits_of_a_base_are_ignored(scene: Scene) -> None:
    machine = scene.machine(run=False)
    machine.set_memory()
    machine.ask_each(machine.reporting.messages() | {BASE: (VringState(REPORTING, 0xABCD0000), ())})
    machine.check_alive()


def test_used_index_comes_from_the_ring(scene: Scene) -> None:
    """A driver keeps it over a restart of the device; the base message carries the available index only."""
    machine = scene.machine()
    for _ in range(3):
        machine.check_alive()
    assert machine.ask(GET_BASE, VringState(REPORTING, 0)) == VringState(REPORTING, 3)
    machine.ask_each(machine.reporting.messages(base=3))
    machine.check_alive()
    assert machine.reporting.ring.used[1] == 4


def test_stop_and_start_neither_lose_nor_repeat_a_report(scene: Scene) -> None:
    machine = scene.machine()
    for round_number in range(1, 30):
        machine.ram.touch(DATA_AT, 2 * MIB)
        machine.submit([(DATA_AT, MIB), (DATA_AT + MIB, MIB)])
        state = machine.ask(GET_BASE, VringState(REPORTING, 0))
        assert isinstance(state, VringState)
        used = machine.reporting.ring.used[1]
        assert state.num == used  # what was taken was finished
        assert used in (round_number - 1, round_number)
        machine.ask_each(machine.reporting.messages(base=state.num))
        machine.reporting.collect()
        assert machine.ram.pages() == set()
    until(
        lambda: len(scene.daemon.events.all("report", vm=machine.client.number)) == 29,
        "one report event for each report",
    )


def test_stopped_ring_is_not_touched(scene: Scene) -> None:
    machine = scene.machine()
    machine.check_alive()
    assert machine.ask(GET_BASE, VringState(REPORTING, 0)) == VringState(REPORTING, 1)
    before = bytes(machine.ram.map[:DATA_AT])
    machine.reporting.kick()
    assert_untouched_by(machine, DATA_AT + MIB)
    machine.ram.map[:DATA_AT] = before
    for _ in range(10):
        machine.reporting.kick()
    assert machine.ask(FrontendRequest.GET_QUEUE_NUM) == 5
    assert machine.ram.map[:DATA_AT] == before


def wait_for_the_last_look(scene: Scene, machine: VirtualMachine) -> None:
    """Have the ring run with no worker in the middle of it: the last one has asked for a kick, and every thread of the
    daemon sleeps."""
    ring = machine.reporting.ring
    machine.ask(ENABLE, VringState(REPORTING, 0))
    ring.used[ring.avail_event_at] = ring.avail[1] - 1
    machine.ask(ENABLE, VringState(REPORTING, 1))
    until(lambda: ring.used[ring.avail_event_at] == ring.avail[1], "the worker asks for a kick")
    threads = Path(f"/proc/{scene.daemon.serving(machine.client.number)}/task")
    until(lambda: {process_state(thread) for thread in threads.iterdir()} == {"S"}, "every thread sleeps")


def test_memory_that_was_a_ring_is_not_touched(scene: Scene) -> None:
    machine = scene.machine()
    machine.report((DATA_AT, PAGE_SIZE))
    wait_for_the_last_look(scene, machine)
    start, end = machine.reporting.offset, machine.reporting.offset + 0x8000
    for filler in (b"\0", b"\xa5"):  # what a guest may have made of the pages since its driver left without a word
        machine.ram.map[start:end] = filler * (end - start)
        machine.set_memory()
        machine.ask(ENABLE, VringState(REPORTING, 0))
        machine.ask(ENABLE, VringState(REPORTING, 1))
        machine.ask(ENABLE, VringState(REPORTING, 0))
        assert machine.ram.map[start:end] == filler * (end - start)
    machine.reporting.renew()
    machine.ask_each(machine.reporting.messages())
    machine.ask(ENABLE, VringState(REPORTING, 1))
    machine.report((DATA_AT, PAGE_SIZE))


def test_driver_that_lost_bit_30_and_left_finds_its_memory_untouched(scene: Scene) -> None:
    """User Mode Linux then disables no ring: it asks for the features, to wait for the device, and frees the rings."""
    machine = scene.machine()
    assert machine.ask(FrontendRequest.SET_FEATURES, machine.features) == 0
    machine.check_alive()
    machine.ask(FrontendRequest.GET_FEATURES)
    start, end = machine.reporting.offset, machine.reporting.offset + 0x8000
    machine.ram.map[start:end] = b"\xa5" * (end - start)
    machine.reporting.kick()
    machine.set_memory()
    assert machine.ask(FrontendRequest.SET_FEATURES, machine.features) == 0
    assert machine.ask(CALL, VringFile(REPORTING, True), [machine.reporting.call_fd]) == 0
    machine.ask(FrontendRequest.GET_FEATURES)
    assert machine.ram.map[start:end] == b"\xa5" * (end - start)
    machine.reporting.renew()
    messages = machine.reporting.messages()
    del messages[ENABLE]
    machine.ask_each(messages)
    machine.report((DATA_AT, PAGE_SIZE))


def test_device_that_was_reset_begins_anew(scene: Scene) -> None:
    machine = scene.machine()
    machine.check_alive()
    assert machine.ask(FrontendRequest.RESET_DEVICE) == 0
    assert_untouched_by(machine, DATA_AT + MIB)
    assert machine.ask(FrontendRequest.SET_FEATURES, machine.features | PROTOCOL_FEATURES) == 0
    for queue in machine.queues:
        queue.renew()
        machine.start(queue)
    machine.check_alive()


# -- enable -----------------------------------------------------------------------------------------------------------


def test_enable_with_a_strange_value(scene: Scene) -> None:
    machine = scene.machine()
    assert machine.ask(ENABLE, VringState(REPORTING, 2)) == 1
    scene.expect(machine, ("message_refused", "SET_VRING_ENABLE"))
    machine.check_alive()


def test_ring_that_was_never_configured_may_be_enabled(scene: Scene) -> None:
    machine = scene.machine(run=False)
    for index in range(5):
        assert machine.ask(ENABLE, VringState(index, 1)) == 0
    machine.set_memory()
    assert_untouched_by(machine)


def test_reports_to_a_disabled_ring_wait_for_it(scene: Scene) -> None:
    machine = scene.machine()
    for _ in range(5):
        assert machine.ask(ENABLE, VringState(REPORTING, 0)) == 0
        assert_untouched_by(machine)
        assert machine.ask(ENABLE, VringState(REPORTING, 1)) == 0
        assert_served(machine)
