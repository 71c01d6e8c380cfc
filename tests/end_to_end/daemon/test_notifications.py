"""Kicks and interrupts as messages, at the real daemon."""

import select
import socket
import time
from collections.abc import Iterator

import pytest

from protocol.memory import PAGE_SIZE
from protocol.vhost_user import BackendRequest, FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import Channel, Message, MessageReader
from protocol.vhost_user_payloads import VringFile, VringState
from protocol.virtio import DeviceStatus, FeatureBit, feature_mask
from tests.end_to_end.conftest import Scene
from tests.harness.processes import DEADLINE
from tests.harness.virtual_machine import DATA_AT, REPORTING, WANTED, VirtualMachine

PROTOCOL_FEATURES = feature_mask(
    ProtocolFeature.MQ,
    ProtocolFeature.REPLY_ACK,
    ProtocolFeature.BACKEND_REQ,
    ProtocolFeature.CONFIG,
    ProtocolFeature.INBAND_NOTIFICATIONS,
)
BEFORE_KICK = (
    FrontendRequest.SET_VRING_NUM,
    FrontendRequest.SET_VRING_BASE,
    FrontendRequest.SET_VRING_ADDR,
    FrontendRequest.SET_VRING_ENABLE,
)
READY = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK | DeviceStatus.DRIVER_OK


class BackEndChannel:
    """The front-end's end of the channel for the back-end's requests."""

    def __init__(self, machine: VirtualMachine) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(DEADLINE)
        self._reader = MessageReader(Channel.BACKEND_REQUESTS)
        with theirs:
            assert machine.ask(FrontendRequest.SET_BACKEND_REQ_FD, None, [theirs.fileno()]) == 0

    def expect(self, request: BackendRequest, index: int | None = None) -> None:
        while (message := self._reader.next_message()) is None:
            self._reader.feed(self.socket.recv(self._reader.bytes_desired()))
        assert isinstance(message, Message)
        assert (message.request, message.payload) == (request, None if index is None else VringState(index, 0))

    def is_silent(self) -> bool:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)


@pytest.fixture
def machine(scene: Scene) -> VirtualMachine:
    """A session without any descriptor for its reporting queue, and without event indices: each chain interrupts."""
    machine = scene.machine(run=False, wanted=WANTED & ~feature_mask(FeatureBit.RING_EVENT_IDX))
    assert machine.ask(FrontendRequest.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES) == 0
    machine.set_memory()
    return machine


def configure(machine: VirtualMachine) -> None:
    messages = machine.reporting.messages()
    machine.ask_each({request: messages[request] for request in BEFORE_KICK})


@pytest.fixture
def channel(machine: VirtualMachine) -> Iterator[BackEndChannel]:
    channel = BackEndChannel(machine)
    configure(machine)
    yield channel
    channel.socket.close()


def add_report(machine: VirtualMachine, offset: int = DATA_AT) -> None:
    machine.ram.touch(offset, PAGE_SIZE)
    machine.reporting.driver.add((), [(machine.region.guest_address + offset, PAGE_SIZE)])


def kick(machine: VirtualMachine) -> None:
    assert machine.ask(FrontendRequest.VRING_KICK, VringState(REPORTING, 0)) == 0


def test_reports_without_any_descriptor(machine: VirtualMachine, channel: BackEndChannel) -> None:
    for _ in range(5):
        add_report(machine)
        kick(machine)
        channel.expect(BackendRequest.VRING_CALL, REPORTING)
        used = machine.reporting.driver.get_used()
        assert used is not None
        assert machine.ram.pages() == set()
    assert channel.is_silent()


def test_ring_is_looked_at_only_when_it_is_kicked(machine: VirtualMachine, channel: BackEndChannel) -> None:
    machine.ask(FrontendRequest.SET_VRING_KICK, VringFile(REPORTING, False))
    for _ in range(20):
        add_report(machine)
        begin = time.monotonic()
        while time.monotonic() - begin < 0.03:  # six turns of a poller
            machine.ask(FrontendRequest.GET_QUEUE_NUM)
        if machine.reporting.driver.get_used() is None:
            break  # else the worker was still awake from the chain before, which is its right
    else:
        raise AssertionError("the ring is polled")
    kick(machine)
    machine.reporting.wait_for_used_index(machine.reporting.ring.avail[1])


def test_front_end_that_does_not_read_its_channel_stalls_nothing(
    machine: VirtualMachine, channel: BackEndChannel
) -> None:
    """Several hundred interrupts that stay unread: all reports are served, and the first reader finds a message."""
    for number in range(600):
        add_report(machine)
        kick(machine)
        machine.reporting.wait_for_used_index(number + 1)
        assert machine.reporting.driver.get_used() is not None
    assert machine.ram.pages() == set()
    channel.expect(BackendRequest.VRING_CALL, REPORTING)


def test_new_channel_gets_the_requests_from_before_it(machine: VirtualMachine) -> None:
    configure(machine)
    add_report(machine)
    kick(machine)
    machine.reporting.wait_for_used_index(1)
    channel = BackEndChannel(machine)
    channel.expect(BackendRequest.VRING_CALL, REPORTING)
    channel.socket.close()


def test_broken_ring_is_told_by_message(scene: Scene, machine: VirtualMachine, channel: BackEndChannel) -> None:
    machine.reporting.ring.avail[1] = 999
    kick(machine)
    channel.expect(BackendRequest.VRING_ERR, REPORTING)
    scene.expect(machine.client, ("queue_stopped", str(REPORTING)))


def test_stopped_ring_sends_nothing(machine: VirtualMachine, channel: BackEndChannel) -> None:
    add_report(machine)
    kick(machine)
    channel.expect(BackendRequest.VRING_CALL, REPORTING)
    assert machine.ask(FrontendRequest.SET_VRING_ENABLE, VringState(REPORTING, 0)) == 0
    add_report(machine)
    kick(machine)
    assert machine.ask(FrontendRequest.GET_FEATURES) is not None
    assert channel.is_silent()
    assert machine.reporting.ring.used[1] == 1
    assert machine.ask(FrontendRequest.SET_VRING_ENABLE, VringState(REPORTING, 1)) == 0
    channel.expect(BackendRequest.VRING_CALL, REPORTING)


def test_inband_notifications_without_acknowledgements_end_the_session(scene: Scene) -> None:
    client = scene.client()
    inband = feature_mask(ProtocolFeature.INBAND_NOTIFICATIONS, ProtocolFeature.BACKEND_REQ)
    client.request(FrontendRequest.SET_PROTOCOL_FEATURES, inband)
    assert client.is_closed_by_peer()
    scene.expect(client, ("message_refused", "SET_PROTOCOL_FEATURES"))
    assert "INBAND_NOTIFICATIONS" in scene.end_of(client)["reason"]


def test_status_of_a_device(scene: Scene) -> None:
    machine = scene.machine()
    status = feature_mask(ProtocolFeature.REPLY_ACK, ProtocolFeature.STATUS)
    assert machine.ask(FrontendRequest.SET_PROTOCOL_FEATURES, status) == 0
    assert machine.ask(FrontendRequest.SET_STATUS, READY) == 0
    assert machine.ask(FrontendRequest.GET_STATUS) == READY
    machine.check_alive()
    assert machine.ask(FrontendRequest.SET_STATUS, 0) == 0
    machine.submit([(DATA_AT, PAGE_SIZE)])
    assert machine.ask(FrontendRequest.GET_STATUS) == 0
    assert machine.reporting.driver.get_used() is None


def test_broken_ring_needs_a_reset_of_the_device_and_no_less(scene: Scene, machine: VirtualMachine) -> None:
    status = PROTOCOL_FEATURES | feature_mask(ProtocolFeature.STATUS)
    assert machine.ask(FrontendRequest.SET_PROTOCOL_FEATURES, status) == 0
    channel = BackEndChannel(machine)
    configure(machine)
    assert machine.ask(FrontendRequest.SET_STATUS, READY) == 0
    machine.reporting.ring.avail[1] = 999
    kick(machine)
    channel.expect(BackendRequest.VRING_ERR, REPORTING)
    channel.expect(BackendRequest.CONFIG_CHANGE_MSG)
    number = machine.client.number
    needs_reset = READY | DeviceStatus.DEVICE_NEEDS_RESET
    scene.daemon.events.wait("status", vm=number, status=needs_reset)
    assert machine.ask(FrontendRequest.GET_STATUS) == needs_reset
    machine.ask(FrontendRequest.GET_VRING_BASE, VringState(REPORTING, 0))
    assert machine.ask(FrontendRequest.GET_STATUS) == needs_reset
    assert machine.ask(FrontendRequest.SET_STATUS, 0) == 0
    assert machine.ask(FrontendRequest.GET_STATUS) == 0
    assert channel.is_silent()
    scene.expect(machine.client, ("queue_stopped", str(REPORTING)))
    channel.socket.close()
