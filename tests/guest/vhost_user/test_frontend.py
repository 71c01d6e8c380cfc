"""The front-end's generators, message by message, against answers that are right, missing and wrong."""

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TypeVar

import pytest

from guest.vhost_user.frontend import Call, Frontend, QueueSetup
from protocol.balloon_config import BalloonConfig
from protocol.errors import VhostUserError
from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import FrontendRequest, ProtocolFeature
from protocol.vhost_user_codec import Channel, Message, MessageReader
from protocol.vhost_user_payloads import (
    DeviceConfig,
    InflightDescription,
    LogDescription,
    Payload,
    VringAddress,
    VringState,
)
from protocol.virtio import DeviceStatus, feature_mask

Result = TypeVar("Result")

BIT_30 = 1 << 30
REPLY_ACK, BACKEND_REQ, CONFIG = 1 << 3, 1 << 5, 1 << 9
LOG_SHMFD, INFLIGHT, RESET, INBAND, MEM_SLOTS, STATUS = 1 << 1, 1 << 12, 1 << 13, 1 << 14, 1 << 15, 1 << 16
REGION = MemoryRegion(guest_address=GuestAddress(0), size=4096, user_address=UserAddress(0x1000), mmap_offset=0x2000)


def sent(call: Call) -> Message:
    """Return a call as the back-end would read it."""
    reader = MessageReader(Channel.FRONTEND_REQUESTS)
    reader.feed(call.data, call.fds)
    message = reader.next_message()
    assert isinstance(message, Message)
    assert message.request is call.request
    return message


class Script:
    """Runs a generator against prepared answers and keeps what was sent."""

    def __init__(self, *answers: Payload) -> None:
        self.answers = list(answers)
        self.messages: list[Message] = []

    def run(self, calls: Generator[Call, Payload, Result]) -> Result:
        """Run ``calls`` to their end."""
        answer: Payload = None
        try:
            call = next(calls)
            while True:
                self.messages.append(sent(call))
                answer = self.answers.pop(0) if call.reply_expected else None
                call = calls.send(answer)
        except StopIteration as stop:
            result: Result = stop.value
            return result

    @property
    def requests(self) -> list[str]:
        """Names of the requests sent, with ``!`` where an acknowledgement was asked for."""
        return [f"{FrontendRequest(each.request).name}{'!' * each.need_reply}" for each in self.messages]


def connected(protocol_features: int = REPLY_ACK | BACKEND_REQ | CONFIG) -> Frontend:
    """Return a front-end that wants everything and has got to know its back-end."""
    frontend = Frontend(wanted=feature_mask(*ProtocolFeature))
    Script(BIT_30 | 1 << 32, protocol_features).run(frontend.offer())
    return frontend


def test_first_messages_are_those_of_user_mode_linux() -> None:
    script, frontend = Script(BIT_30 | 0x1_2000_0020, 0xFFFF_FFFF), Frontend()
    assert script.run(frontend.offer()) == 0x1_2000_0020  # a driver never sees bit 30
    assert script.requests == ["SET_OWNER", "GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES"]
    assert script.messages[-1].payload == frontend.protocol_features == 0x229


def test_session_needs_protocol_features() -> None:
    with pytest.raises(VhostUserError, match="no protocol features"):
        Script(1 << 32).run(Frontend().offer())


def test_session_needs_a_configuration_space() -> None:
    with pytest.raises(VhostUserError, match="no configuration space"):
        Script(BIT_30, REPLY_ACK).run(Frontend().offer())


@pytest.mark.parametrize("answers", [(None,), (BIT_30, None)])
def test_empty_answer_is_a_refusal(answers: tuple[Payload, ...]) -> None:
    with pytest.raises(VhostUserError, match=r"refused GET_(PROTOCOL_)?FEATURES"):
        Script(*answers).run(Frontend().offer())


def test_messages_all_ask_for_an_acknowledgement_once_that_is_negotiated() -> None:
    script, frontend = Script(0, 0, 0), connected()
    script.run(frontend.set_backend_channel(9))
    script.run(frontend.accept(0x20))
    script.run(frontend.set_memory((REGION,), (5,)))
    assert script.requests == ["SET_BACKEND_REQ_FD!", "SET_FEATURES!", "SET_MEM_TABLE!"]
    assert [message.fds for message in script.messages] == [(9,), (), (5,)]
    assert script.messages[1].payload == BIT_30 | 0x20
    assert frontend.features == 0x20


def test_session_without_acknowledgements_waits_for_none() -> None:
    script, frontend = Script(), connected(CONFIG)
    script.run(frontend.set_backend_channel(9))
    script.run(frontend.accept(0x20))
    assert script.requests == ["SET_FEATURES"]  # and no channel that the back-end could not use


@pytest.mark.parametrize("answer", [1, 2**64 - 1, None])
def test_acknowledgement_other_than_zero_is_a_refusal(answer: Payload) -> None:
    frontend = connected()
    with pytest.raises(VhostUserError, match="the back-end refused SET_FEATURES"):
        Script(answer).run(frontend.accept(0x20))
    assert frontend.features == 0


def queue_setup(kick: int | None = 7, call: int | None = 8, log: int | None = None) -> QueueSetup:
    """Return some queue."""
    return QueueSetup(
        size=256,
        descriptor=UserAddress(0x1000),
        available=UserAddress(0x2000),
        used=UserAddress(0x3000),
        kick=kick,
        call=call,
        log=log,
    )


def test_queue_is_described_before_it_is_kicked_and_enabled_last() -> None:
    script = Script(0, 0, 0, 0, 0, 0)
    script.run(connected().start_queue(2, queue_setup()))
    assert script.requests == [
        "SET_VRING_NUM!",
        "SET_VRING_BASE!",
        "SET_VRING_ADDR!",
        "SET_VRING_CALL!",
        "SET_VRING_KICK!",
        "SET_VRING_ENABLE!",
    ]
    assert [message.fds for message in script.messages] == [(), (), (), (8,), (7,), ()]
    assert script.messages[2].payload is not None


def test_stopping_a_queue_gives_its_next_index() -> None:
    assert Script(VringState(2, 65535)).run(connected().stop_queue(2)) == 65535


@pytest.mark.parametrize("answer", [None, VringState(1, 0)])
def test_answer_about_another_queue_or_none_is_refused(answer: Payload) -> None:
    with pytest.raises(VhostUserError, match=r"refused GET_VRING_BASE|for queue 1 instead of 2"):
        Script(answer).run(connected().stop_queue(2))


def test_configuration_space_is_read_whole() -> None:
    config = BalloonConfig(num_pages=1, actual=2, free_page_hint_cmd_id=3, poison_val=4)
    script = Script(DeviceConfig(offset=0, flags=0, data=config.build()))
    assert script.run(connected().get_config()) == config
    assert script.messages[0].payload == DeviceConfig(offset=0, flags=0, data=bytes(16))


@pytest.mark.parametrize("answer", [None, DeviceConfig(offset=0, flags=0, data=b"1234")])
def test_configuration_space_that_is_refused_or_cut_short_is_an_error(answer: Payload) -> None:
    with pytest.raises(VhostUserError, match=r"refused GET_CONFIG|16 bytes .* were asked for, 4 came"):
        Script(answer).run(connected().get_config())


def test_configuration_field_is_written_narrowly() -> None:
    script = Script(0)
    script.run(connected().set_config(4, b"\1\2\3\4"))
    assert script.messages[0].payload == DeviceConfig(offset=4, flags=0, data=b"\1\2\3\4")


# -- events of a session ----------------------------------------------------------------------------------------------


def test_stopped_queue_starts_from_its_base() -> None:
    script, frontend = Script(VringState(2, 0x8007_8009), *[0] * 6), connected()
    base = script.run(frontend.stop_queue(2))
    script.run(frontend.start_queue(2, queue_setup(), base))
    assert script.messages[2].payload == VringState(2, 0x8007_8009)


def test_device_status_goes_up_step_by_step_and_features_are_looked_after() -> None:
    script, frontend = Script(0, 0, 0, 0, 11, 0), connected(REPLY_ACK | CONFIG | STATUS)
    script.run(frontend.accept(0x20))
    script.run(frontend.driver_ok())
    assert script.requests == [
        "SET_STATUS!",
        "SET_STATUS!",
        "SET_FEATURES!",
        "SET_STATUS!",
        "GET_STATUS",
        "SET_STATUS!",
    ]
    assert [message.payload for message in script.messages] == [1, 3, BIT_30 | 0x20, 11, None, 15]


def test_device_that_does_not_confirm_the_features_is_given_up() -> None:
    script, frontend = Script(0, 0, 0, 0, 3, 0), connected(REPLY_ACK | CONFIG | STATUS)
    with pytest.raises(VhostUserError, match=r"^the device does not take the features 0x20$"):
        script.run(frontend.accept(0x20))
    assert script.messages[-1].payload == 11 | DeviceStatus.FAILED


@pytest.mark.parametrize(
    ("features", "messages"),
    [
        (RESET | STATUS, ["RESET_DEVICE!", "SET_STATUS!"]),
        (RESET, ["RESET_DEVICE!"]),
        (STATUS, ["SET_STATUS!"]),
        (0, ["GET_VRING_BASE", "GET_VRING_BASE"]),
    ],
)
def test_reset_is_said_in_the_words_that_the_back_end_knows(features: int, messages: list[str]) -> None:
    answers: list[Payload] = [0, 0] if features else [VringState(0, 0), VringState(1, 0)]
    script, frontend = Script(*answers), connected(REPLY_ACK | CONFIG | features)
    script.run(frontend.reset(2))
    assert script.requests == messages
    assert frontend.status == 0


def test_queue_in_band_starts_with_a_kick_and_no_descriptors() -> None:
    script, frontend = Script(*[0] * 6), connected(REPLY_ACK | BACKEND_REQ | CONFIG | INBAND)
    script.run(frontend.start_queue(2, queue_setup(kick=None, call=None)))
    assert script.requests == [
        "SET_VRING_NUM!",
        "SET_VRING_BASE!",
        "SET_VRING_ADDR!",
        "SET_VRING_ENABLE!",
        "VRING_KICK!",
    ]
    script.run(frontend.kick(1))
    assert script.messages[-1].payload == VringState(1, 0)
    assert all(message.fds == () for message in script.messages)


@pytest.mark.parametrize("missing", [REPLY_ACK, BACKEND_REQ])
def test_notifications_in_band_need_a_channel_and_replies(missing: int) -> None:
    frontend = connected((REPLY_ACK | BACKEND_REQ | CONFIG | INBAND) & ~missing)
    assert not frontend.has(ProtocolFeature.INBAND_NOTIFICATIONS)


def test_regions_are_added_and_removed_as_they_were_added() -> None:
    script, frontend = Script(8, 0, 0), connected(REPLY_ACK | CONFIG | MEM_SLOTS)
    assert script.run(frontend.get_memory_slots()) == 8
    script.run(frontend.add_region(REGION, 5))
    script.run(frontend.remove_region(REGION))
    assert script.requests == ["GET_MAX_MEM_SLOTS", "ADD_MEM_REG!", "REM_MEM_REG!"]
    assert [message.fds for message in script.messages] == [(), (5,), ()]
    assert script.messages[1].payload == script.messages[2].payload == REGION


AREA = InflightDescription(mmap_size=4096, mmap_offset=0, num_queues=3, queue_size=256)


def test_inflight_area_is_asked_for_and_handed_back() -> None:
    script, frontend = Script(AREA, 0), connected(REPLY_ACK | CONFIG | INFLIGHT)
    assert script.run(frontend.get_inflight(3, 256)) == AREA
    script.run(frontend.set_inflight(AREA, 5))
    assert script.requests == ["GET_INFLIGHT_FD", "SET_INFLIGHT_FD!"]
    assert script.messages[0].payload == replace(AREA, mmap_size=0)
    assert (script.messages[1].payload, script.messages[1].fds) == (AREA, (5,))


def test_inflight_area_of_nothing_is_a_refusal() -> None:
    with pytest.raises(VhostUserError, match="refused GET_INFLIGHT_FD"):
        Script(replace(AREA, mmap_size=0)).run(connected(CONFIG | INFLIGHT).get_inflight(3, 256))


def test_log_is_given_before_it_is_turned_on() -> None:
    script, frontend = Script(0, 0, 0, 0, 0), connected(REPLY_ACK | CONFIG | LOG_SHMFD)
    script.run(frontend.accept(0x20))
    script.run(frontend.start_logging(LogDescription(4096, 0), 5))
    script.run(frontend.place_queue(2, queue_setup(log=0x3000)))
    script.run(frontend.stop_logging())
    assert script.requests[1:] == ["SET_LOG_BASE", "SET_FEATURES!", "SET_VRING_ADDR!", "SET_FEATURES!"]
    assert [script.messages[number].payload for number in (2, 4)] == [BIT_30 | 1 << 26 | 0x20, BIT_30 | 0x20]
    address = script.messages[3].payload
    assert isinstance(address, VringAddress)
    assert (address.flags, address.log) == (1, 0x3000)


def test_log_that_is_refused_is_not_turned_on() -> None:
    script = Script(1)
    with pytest.raises(VhostUserError, match="refused SET_LOG_BASE"):
        script.run(connected(CONFIG | LOG_SHMFD).start_logging(LogDescription(4096, 0), 5))
    assert script.requests == ["SET_LOG_BASE"]


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("CONFIGURE_MEM_SLOTS", lambda frontend: frontend.get_memory_slots()),
        ("CONFIGURE_MEM_SLOTS", lambda frontend: frontend.add_region(REGION, 5)),
        ("CONFIGURE_MEM_SLOTS", lambda frontend: frontend.remove_region(REGION)),
        ("INBAND_NOTIFICATIONS", lambda frontend: frontend.kick(0)),
        ("INFLIGHT_SHMFD", lambda frontend: frontend.get_inflight(3, 256)),
        ("GET_VRING_BASE_SKIP_DRAIN", lambda frontend: frontend.stop_queue(2, drain=False)),
        ("INFLIGHT_SHMFD", lambda frontend: frontend.set_inflight(AREA, 5)),
        ("LOG_SHMFD", lambda frontend: frontend.start_logging(LogDescription(4096, 0), 5)),
    ],
)
def test_request_that_was_not_negotiated_is_not_sent(
    name: str, begin: Callable[[Frontend], Generator[Call, Payload, object]]
) -> None:
    script = Script()
    with pytest.raises(VhostUserError, match=f"^the back-end does not offer {name}$"):
        script.run(begin(connected()))
    assert script.messages == []
