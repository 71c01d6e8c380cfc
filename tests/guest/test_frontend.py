"""The front-end's generators, message by message, against answers that are right, missing and wrong."""

from collections.abc import Generator
from typing import TypeVar

import pytest

from guest.frontend import Call, Frontend, QueueSetup
from protocol.errors import VhostUserError
from protocol.memory import GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import DeviceConfig, FrontendRequest, Payload, VringState
from protocol.vhost_user_codec import Channel, Message, MessageReader
from protocol.virtio_balloon import BalloonConfig

Result = TypeVar("Result")

BIT_30 = 1 << 30
REPLY_ACK, BACKEND_REQ, CONFIG = 1 << 3, 1 << 5, 1 << 9


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
    """Return a front-end that has got to know its back-end."""
    frontend = Frontend()
    Script(BIT_30 | 1 << 32, protocol_features).run(frontend.offer())
    return frontend


def test_the_first_messages_are_those_of_user_mode_linux() -> None:
    script, frontend = Script(BIT_30 | 0x1_2000_0020, 0xFFFF_FFFF), Frontend()
    assert script.run(frontend.offer()) == 0x1_2000_0020  # a driver never sees bit 30
    assert script.requests == ["SET_OWNER", "GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES"]
    assert script.messages[-1].payload == frontend.protocol_features == 0x229


def test_without_protocol_features_there_is_no_session() -> None:
    with pytest.raises(VhostUserError, match="no protocol features"):
        Script(1 << 32).run(Frontend().offer())


def test_without_a_configuration_space_there_is_no_session() -> None:
    with pytest.raises(VhostUserError, match="no configuration space"):
        Script(BIT_30, REPLY_ACK).run(Frontend().offer())


@pytest.mark.parametrize("answers", [(None,), (BIT_30, None)])
def test_an_empty_answer_is_a_refusal(answers: tuple[Payload, ...]) -> None:
    with pytest.raises(VhostUserError, match=r"refused GET_(PROTOCOL_)?FEATURES"):
        Script(*answers).run(Frontend().offer())


def test_once_acknowledgements_are_negotiated_every_message_asks_for_one() -> None:
    script, frontend = Script(0, 0, 0), connected()
    script.run(frontend.set_backend_channel(9))
    script.run(frontend.accept(0x20))
    region = MemoryRegion(
        guest_address=GuestAddress(0), size=4096, user_address=UserAddress(0x1000), mmap_offset=0x2000
    )
    script.run(frontend.set_memory((region,), (5,)))
    assert script.requests == ["SET_BACKEND_REQ_FD!", "SET_FEATURES!", "SET_MEM_TABLE!"]
    assert [message.fds for message in script.messages] == [(9,), (), (5,)]
    assert script.messages[1].payload == BIT_30 | 0x20
    assert frontend.features == 0x20


def test_without_acknowledgements_nothing_waits() -> None:
    script, frontend = Script(), connected(CONFIG)
    script.run(frontend.set_backend_channel(9))
    script.run(frontend.accept(0x20))
    assert script.requests == ["SET_FEATURES"]  # and no channel where nobody could use it


@pytest.mark.parametrize("answer", [1, 2**64 - 1, None])
def test_an_acknowledgement_other_than_zero_is_a_refusal(answer: Payload) -> None:
    frontend = connected()
    with pytest.raises(VhostUserError, match="the back-end refused SET_FEATURES"):
        Script(answer).run(frontend.accept(0x20))
    assert frontend.features == 0


def test_a_queue_is_described_before_it_is_kicked_and_enabled_last() -> None:
    script = Script(0, 0, 0, 0, 0, 0)
    queue = QueueSetup(
        size=256,
        descriptor=UserAddress(0x1000),
        available=UserAddress(0x2000),
        used=UserAddress(0x3000),
        kick=7,
        call=8,
    )
    script.run(connected().start_queue(2, queue))
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
def test_an_answer_about_another_queue_or_none_is_refused(answer: Payload) -> None:
    with pytest.raises(VhostUserError, match=r"refused GET_VRING_BASE|for queue 1 instead of 2"):
        Script(answer).run(connected().stop_queue(2))


def test_the_configuration_space_is_read_whole() -> None:
    config = BalloonConfig(num_pages=1, actual=2, free_page_hint_cmd_id=3, poison_val=4)
    script = Script(DeviceConfig(offset=0, flags=0, data=config.build()))
    assert script.run(connected().get_config()) == config
    assert script.messages[0].payload == DeviceConfig(offset=0, flags=0, data=bytes(16))


@pytest.mark.parametrize("answer", [None, DeviceConfig(offset=0, flags=0, data=b"1234")])
def test_a_configuration_space_that_is_refused_or_cut_short_is_an_error(answer: Payload) -> None:
    with pytest.raises(VhostUserError, match=r"refused GET_CONFIG|16 bytes .* were asked for, 4 came"):
        Script(answer).run(connected().get_config())


def test_one_field_of_the_configuration_space_is_written_narrowly() -> None:
    script = Script(0)
    script.run(connected().set_config(4, b"\1\2\3\4"))
    assert script.messages[0].payload == DeviceConfig(offset=4, flags=0, data=b"\1\2\3\4")
