"""What a plan makes of messages and notifications, in virtual time."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_codec import Channel, build_message, build_own_reply
from protocol.vhost_user_payloads import DeviceConfig, VringFile, VringState
from protocol.virtio import feature_mask
from protocol.virtio_balloon import BalloonFeature
from scripts.check.faults.fault_plan import HOLD, LINGER, SPLIT_GAP, FaultPlan, SessionPlan
from scripts.check.faults.fault_script import FaultScript, FileType, Side, Signal
from scripts.check.faults.passing.message_pieces import MessageCutter, Piece
from scripts.check.faults.script_text import parse_script
from scripts.check.faults.steps import Close, Notify, Send, SendMemory, SendReset, Step, Struck

FRONT = Channel.FRONTEND_REQUESTS
OWNER = build_message(FrontendRequest.SET_OWNER)
FEATURES = build_message(FrontendRequest.SET_FEATURES, 0x1234)
KICK = build_message(FrontendRequest.SET_VRING_KICK, VringFile(2, has_file=True))
NO_KICK = build_message(FrontendRequest.SET_VRING_KICK, VringFile(2, has_file=False))
ENABLE = build_message(FrontendRequest.SET_VRING_ENABLE, VringState(2, 1))
CONFIG = build_own_reply(FrontendRequest.GET_CONFIG, DeviceConfig(offset=0, flags=0, data=bytes(16)))


def session(text: str, seed: int | None = None) -> SessionPlan:
    return FaultPlan(parse_script(text, "test"), seed).session()


def piece(data: bytes, *files: object, channel: Channel = FRONT) -> Piece:
    return Piece(channel=channel, data=data, files=files)


def sends(steps: Sequence[Step]) -> list[tuple[float, bytes, tuple[object, ...]]]:
    return [(round(step.at, 6), step.data, step.files) for step in steps if isinstance(step, Send)]


def sent(text: str, data: bytes, *files: object) -> tuple[bytes, tuple[object, ...]]:
    """Return the one message that arrives for this one."""
    ((at, changed, changed_files),) = sends(session(f"on request any: {text}").message(piece(data, *files), 1.0))
    assert at == 1.0
    return changed, changed_files


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("set request 77", b"\x4d\0\0\0" + KICK[4:]),
        ("set flags 0x9", KICK[:4] + b"\x09\0\0\0" + KICK[8:]),
        ("set size +4", KICK[:8] + b"\x0c\0\0\0" + KICK[12:]),
        ("set size -9", KICK[:8] + b"\xff\xff\xff\xff" + KICK[12:]),
        ("set index 65536", KICK[:12] + b"\0\0\x01\0\0\0\0\0"),
        ("set value 1", KICK[:12] + b"\x01\0\0\0\0\0\0\0"),
        ("set num 5", KICK),
        ("corrupt payload byte 1 with 0xff", KICK[:13] + b"\xff" + KICK[14:]),
        ("corrupt header byte 5 with 7", KICK[:5] + b"\x07" + KICK[6:]),
        ("corrupt payload byte 99 with 7", KICK),
        ("truncate payload to 3", KICK[:15]),
        ("set value 5; truncate payload to 1", KICK[:12] + b"\x05"),
    ],
)
def test_bytes_are_changed(text: str, changed: bytes) -> None:
    assert sent(text, KICK, "kick") == (changed, ("kick",))


def test_index_leaves_it_open_whether_a_descriptor_comes() -> None:
    assert sent("set index 3", NO_KICK)[0] == build_message(
        FrontendRequest.SET_VRING_KICK, VringFile(3, has_file=False)
    )
    assert sent("set index 3", ENABLE)[0] == build_message(FrontendRequest.SET_VRING_ENABLE, VringState(3, 1))
    assert sent("set num 0", ENABLE)[0] == build_message(FrontendRequest.SET_VRING_ENABLE, VringState(2, 0))
    assert sent("set index 3", FEATURES)[0] == FEATURES


def test_descriptors_are_withheld_and_added() -> None:
    assert sent("withhold fd 1", KICK, "a", "b", "c")[1] == ("a", "c")
    assert sent("withhold fd 3", KICK, "a")[1] == ("a",)
    assert sent("withhold fds; add fd eventfd", KICK, "a", "b")[1] == (FileType.EVENTFD,)


def test_drop_duplicate_and_split() -> None:
    assert sends(session("on request any: drop").message(piece(KICK, "a"), 0.0)) == []
    twice = session("on request any: duplicate").message(piece(KICK, "a"), 0.0)
    assert sends(twice) == [(0.0, KICK, ("a",))] * 2
    cut = session("on request any: split at 3, 12, 500").message(piece(KICK, "a"), 1.0)
    assert sends(cut) == [
        (1.0, KICK[:3], ("a",)),
        (1.0 + SPLIT_GAP, KICK[3:12], ()),
        (1.0 + 2 * SPLIT_GAP, KICK[12:], ()),
    ]


def test_delay_keeps_the_order_of_its_stream_alone() -> None:
    plan = session("on request SET_OWNER: delay 50ms")
    assert sends(plan.message(piece(OWNER), 1.0)) == [(1.05, OWNER, ())]
    assert sends(plan.message(piece(KICK), 1.01)) == [(1.05, KICK, ())]
    reply = piece(CONFIG, channel=Channel.BACKEND_REPLIES)
    assert sends(plan.message(reply, 1.01)) == [(1.01, CONFIG, ())]
    assert sends(plan.message(piece(KICK), 1.2)) == [(1.2, KICK, ())]


def test_reorder_swaps_two_messages_and_waits_no_longer_than_a_second() -> None:
    plan = session("on request SET_VRING_KICK: reorder with next")
    assert sends(plan.message(piece(KICK, "kick"), 1.0)) == []
    assert plan.deadline == 1.0 + HOLD
    assert sends(plan.message(piece(ENABLE), 1.5)) == [(1.5, ENABLE, ()), (1.5, KICK, ("kick",))]
    assert plan.tick(9.0) == []
    plan.message(piece(KICK), 2.0)
    assert plan.tick(2.9) == []
    assert sends(plan.tick(3.0)) == [(3.0, KICK, ())]
    plan.message(piece(KICK), 4.0)
    assert sends(plan.end(FRONT, 4.1)) == [(4.1, KICK, ())]


def test_rules_choose_by_queue_occurrence_and_every() -> None:
    text = "on request SET_VRING_KICK index 2 occurrence 2: drop"
    plan = FaultPlan(parse_script(text, "test"))
    other = build_message(FrontendRequest.SET_VRING_KICK, VringFile(1, has_file=True))
    first, second = plan.session(), plan.session()
    assert [len(sends(first.message(piece(data), 0.0))) for data in (KICK, other, KICK, KICK)] == [1, 1, 0, 1]
    assert len(sends(second.message(piece(KICK), 0.0))) == 1, "counted over all sessions"
    every = session("on request any every 3: drop")
    assert [len(sends(every.message(piece(OWNER), 0.0))) for _ in range(6)] == [1, 1, 0, 1, 1, 0]


def test_bytes_out_of_step_are_passed_whatever_the_rules() -> None:
    plan = session("on request any: drop")
    assert sends(plan.message(Piece(channel=FRONT, data=b"x" * 20, is_message=False), 0.0)) == [(0.0, b"x" * 20, ())]


def test_notifications() -> None:
    assert session("kick queue 2: drop").signal(Signal.KICK, 1, 1.0, 3) == [
        Notify(at=1.0, signal=Signal.KICK, queue=1, count=3)
    ]

    def notified(text: str) -> list[tuple[float, int]]:
        steps = session(text).signal(Signal.CALL, 2, 1.0)
        assert isinstance(steps[0], Struck)
        return [(round(step.at, 6), step.count) for step in steps if isinstance(step, Notify)]

    assert notified("call queue 2: drop") == []
    assert notified("call queue 2: delay 20ms") == [(1.02, 1)]
    assert notified("call queue any: spurious 2") == [(1.0, 1), (1.001, 1), (1.002, 1)]
    assert notified("call queue any: drop; spurious 1") == [(1.001, 1)]


def test_effects_come_before_the_message_or_after_it() -> None:
    steps = session("on request any: reset; pass; memory change; disconnect back-end").message(piece(OWNER), 1.0)
    assert steps[1:] == [
        SendReset(at=1.0),
        Send(at=1.0, channel=FRONT, data=OWNER),
        SendMemory(at=1.0),
        Close(at=1.0, side=Side.BACK_END),
        Close(at=1.0 + LINGER, side=Side.FRONT_END),
    ]


def test_chains_strike_once_while_one_is_not_used() -> None:
    plan = session("after 3 chains of queue 2: reset; pass; kick queue 2 1")
    assert plan.chains(2, 2, 1, 0.0) == ([], [])
    assert plan.chains(2, 3, 3, 0.0) == ([], [])
    assert plan.chains(1, 9, 0, 0.0) == ([], [])
    before, after = plan.chains(2, 4, 3, 1.0)
    assert before[1:] == [SendReset(at=1.0)]
    assert after == [Notify(at=1.001, signal=Signal.KICK, queue=2)]
    assert plan.chains(2, 5, 4, 2.0) == ([], [])


def test_queue_of_a_balloon_is_found_by_its_name() -> None:
    plan = session("kick queue reporting: drop\non request any index reporting: drop; call queue stats 1")
    assert not plan.needs_signal(Signal.KICK, 2)
    assert len(sends(plan.message(piece(KICK), 0.0))) == 1
    reporting = feature_mask(BalloonFeature.PAGE_REPORTING)
    plan.message(piece(build_message(FrontendRequest.SET_FEATURES, reporting)), 0.0)
    assert [queue for queue in range(6) if plan.needs_signal(Signal.KICK, queue)] == [2]
    assert len(sends(plan.message(piece(KICK), 0.0))) == 0
    assert [step for step in plan.signal(Signal.KICK, 2, 1.0) if isinstance(step, Notify)] == []
    with_stats = reporting | feature_mask(BalloonFeature.STATS_VQ)
    plan.message(piece(build_message(FrontendRequest.SET_FEATURES, with_stats)), 0.0)
    assert [queue for queue in range(6) if plan.needs_signal(Signal.KICK, queue)] == [3]
    assert plan.needs_signal(Signal.CALL, 2)


def test_notifications_that_rules_need() -> None:
    plan = session("kick queue 2: drop\ncall queue any: drop\non request SET_OWNER: kick queue 4 1")
    assert [queue for queue in range(6) if plan.needs_signal(Signal.KICK, queue)] == [2, 4]
    assert plan.needs_signal(Signal.CALL, 0)
    assert session("after 3 chains of queue 2: reset").awaits_chains() == {2}


STREAMS = st.lists(st.tuples(st.sampled_from(Channel), st.binary(max_size=60), st.lists(st.integers(), max_size=3)))


@given(STREAMS)
def test_plan_without_rules_is_the_identity(stream: list[tuple[Channel, bytes, list[int]]]) -> None:
    plan = FaultPlan(FaultScript()).session()
    cutters = {channel: MessageCutter(channel) for channel in Channel}
    steps = list[Step]()
    for now, (channel, data, files) in enumerate(stream):
        for cut in cutters[channel].feed(data, files if data else ()):
            received = plan.message(cut, float(now))
            assert received == [Send(at=float(now), channel=channel, data=cut.data, files=cut.files)]
            steps += received
    for channel, cutter in cutters.items():
        steps += [step for cut in cutter.rest() for step in plan.message(cut, 1e6)]
        mine = [step for step in steps if isinstance(step, Send) and step.channel is channel]
        assert b"".join(step.data for step in mine) == b"".join(data for each, data, _ in stream if each is channel)
        assert [file for step in mine for file in step.files] == [
            file for each, data, files in stream if each is channel and data for file in files
        ]


EVERYWHERE = ("drop", "delay 3ms", "pass; reset", "disconnect both", "memory change", "call queue 1 2")
MESSAGES_ALONE = (
    *("duplicate", "split at 1, 14", "reorder with next", "corrupt payload byte random with random"),
    *("set index random", "set size random", "withhold fd 0", "add fd pipe", "truncate payload to 2"),
)
RULES = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "on request any",
                "on request SET_VRING_KICK every 2",
                "on reply any with probability 0.5",
                "kick queue any",
            ]
        ),
        st.sampled_from(EVERYWHERE + MESSAGES_ALONE),
    ),
    max_size=5,
)
MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([FRONT, Channel.BACKEND_REPLIES]), st.sampled_from([OWNER, KICK, ENABLE, FEATURES, CONFIG])
    )
)


@given(RULES, MESSAGES, st.integers(0, 9))
def test_same_seed_same_steps_and_none_in_the_past(
    rules: list[tuple[str, str]], messages: list[tuple[Channel, bytes]], seed: int
) -> None:
    lines = [f"{when}: {what}" for when, what in rules if not when.startswith("kick") or what in EVERYWHERE]
    text = "\n".join(lines)

    def run() -> list[Step]:
        plan = session(text, seed)
        steps = list[Step]()
        last = dict.fromkeys(Channel, 0.0)
        for number, (channel, data) in enumerate(messages):
            now = number / 1000
            made = [*plan.tick(now), *plan.message(piece(data, "f", channel=channel), now)]
            made += plan.signal(Signal.KICK, 1, now)
            for step in made:
                assert step.at >= now
                if isinstance(step, Send):
                    assert step.at >= last[step.channel], "a stream keeps the order of its steps"
                    last[step.channel] = step.at
            steps += made
        return steps

    assert run() == run()
