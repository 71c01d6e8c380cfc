"""Fault scripts as text: what each line means, and where a mistake is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import UsageError
from protocol.vhost_user import BackendRequest, FrontendRequest
from protocol.vhost_user_codec import Channel
from protocol.virtio_balloon import BalloonQueue
from scripts.check.faults.fault_script import (
    RANDOM,
    Action,
    AddFile,
    AfterChains,
    ChangeMemory,
    Choice,
    Corrupt,
    Delay,
    Disconnect,
    Drop,
    Duplicate,
    Field,
    FileType,
    OnMessage,
    OnSignal,
    Pass,
    Reorder,
    Reset,
    Set,
    Side,
    Signal,
    Split,
    Spurious,
    Storm,
    Trigger,
    Truncate,
    Withhold,
)
from scripts.check.faults.script_text import parse_script

FRONT, BACK = Channel.FRONTEND_REQUESTS, Channel.BACKEND_REQUESTS


@pytest.mark.parametrize(
    ("text", "trigger", "choice"),
    [
        ("on request SET_OWNER", OnMessage(channel=FRONT, request=FrontendRequest.SET_OWNER), Choice()),
        ("on reply GET_CONFIG", OnMessage(channel=Channel.BACKEND_REPLIES, request=24), Choice()),
        ("on request any", OnMessage(channel=FRONT, request=None), Choice()),
        ("on request 0x4d every 3", OnMessage(channel=FRONT, request=77), Choice(every=3)),
        (
            "on request SET_VRING_KICK index 2 occurrence 1",
            OnMessage(channel=FRONT, request=12, index=2),
            Choice(occurrence=1),
        ),
        (
            "on request CONFIG_CHANGE_MSG with probability 0.25",
            OnMessage(channel=BACK, request=BackendRequest.CONFIG_CHANGE_MSG),
            Choice(probability=0.25),
        ),
        ("on back-end reply any", OnMessage(channel=Channel.FRONTEND_REPLIES, request=None), Choice()),
        ("on back-end request 6", OnMessage(channel=BACK, request=6), Choice()),
        ("kick queue reporting", OnSignal(signal=Signal.KICK, queue=BalloonQueue.REPORTING), Choice()),
        ("kick queue 2", OnSignal(signal=Signal.KICK, queue=2), Choice()),
        (
            "call queue any every 2 with probability 1",
            OnSignal(signal=Signal.CALL, queue=None),
            Choice(every=2, probability=1),
        ),
    ],
)
def test_trigger_and_choice(text: str, trigger: Trigger, choice: Choice) -> None:
    (rule,) = parse_script(f"\n  {text}: drop  # why", "x").rules
    assert (rule.line, rule.text, rule.trigger, rule.choice, rule.actions) == (
        2,
        f"{text}: drop",
        trigger,
        choice,
        (Drop(),),
    )


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("drop", Drop()),
        ("delay 50ms", Delay(0.05)),
        ("delay 1.5s", Delay(1.5)),
        ("duplicate", Duplicate(1)),
        ("duplicate 3", Duplicate(3)),
        ("split at 12, 3", Split((3, 12))),
        ("reorder with next", Reorder()),
        ("corrupt payload byte 4 with 0xff", Corrupt(False, 4, 255)),
        ("corrupt header byte random with random", Corrupt(True, RANDOM, RANDOM)),
        ("truncate payload to 3", Truncate(3)),
        ("set request 77", Set(Field.REQUEST, 77)),
        ("set flags 0x9", Set(Field.FLAGS, 9)),
        ("set size +4", Set(Field.SIZE, 4, is_relative=True)),
        ("set size -4", Set(Field.SIZE, -4, is_relative=True)),
        ("set index 65536", Set(Field.INDEX, 65536)),
        ("set value 0xffffffffffffffff", Set(Field.VALUE, 2**64 - 1)),
        ("withhold fd 0", Withhold(0)),
        ("withhold fds", Withhold(None)),
        ("add fd eventfd", AddFile(FileType.EVENTFD)),
        ("pass", Pass()),
        ("disconnect front-end", Disconnect(Side.FRONT_END)),
        ("reset", Reset()),
        ("memory change", ChangeMemory()),
        ("kick queue 1 5", Storm(Signal.KICK, 1, 5)),
    ],
)
def test_fault_of_a_message(text: str, action: Action) -> None:
    (rule,) = parse_script(f"on request SET_OWNER: {text}; {text}", "x").rules
    assert rule.actions == (action, action)


def test_faults_of_notifications_and_of_chains() -> None:
    script = parse_script("seed 7\nkick queue 2: spurious 10\nafter 3 chains of queue 2: pass; reset", "x")
    assert script.seed == 7
    assert script.rules[0].actions == (Spurious(10),)
    assert script.rules[1].trigger == AfterChains(count=3, queue=2)
    assert script.rules[1].actions == (Pass(), Reset())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed x", "f:1:6: expected a seed, a number from 0 to 18446744073709551615, found 'x'"),
        ("seed 1\nseed 2", "f:2:1: expected one seed in a script, found 'seed'"),
        (
            "kick queue reprting: drop",
            "f:1:12: expected a queue: its number, inflate, deflate, stats, free_page or reporting, such as reporting, "
            "found 'reprting'",
        ),
        ("when", "f:1:1: expected a line of one of seed, on, kick, call or after, found 'when'"),
        ("on message X: drop", "f:1:4: expected `request` or `reply`, found 'message'"),
        (
            "on request SET_VRING_KIK: drop",
            "f:1:12: expected the name or number of a request, or `any`, such as SET_VRING_KICK, found 'SET_VRING_KIK'",
        ),
        ("on request any drop", "f:1:16: expected `:`, found 'drop'"),
        (
            "kick queue 2: dorp",
            "f:1:15: expected a fault: drop, delay, spurious, pass, disconnect, reset, memory, kick or call, such as "
            "drop, found 'dorp'",
        ),
        (
            "on request any: delay 5",
            "f:1:23: expected a time up to 3600s, such as 50ms, found '5'",
        ),
        ("on request any: drop drop", "f:1:22: expected the end of the line, found 'drop'"),
        (
            "on request any: split at",
            "f:1:25: expected a byte offset, a number from 1 to 4294967295, found the end of the line",
        ),
        ("kick queue 2 with probability 2: drop", "f:1:31: expected a probability from 0 to 1, such as 0.1, found '2'"),
        (
            "after 3 chains of queue 2: drop",
            "f:1:28: expected a fault: pass, disconnect, reset, memory, kick or call, found 'drop'",
        ),
        ("on request any: set size +x", "f:1:26: expected a difference, such as +4, found '+x'"),
        (
            "on request any: add fd event",
            "f:1:24: expected a kind of descriptor: eventfd, pipe, socket, memory or null, such as eventfd, found 'event'",  # noqa: E501
        ),
    ],
)
def test_mistake_is_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_script(text, "f")
    assert str(caught.value) == message


WORDS = (
    "seed on kick call after request reply back-end any index occurrence every with probability queue chains of : ; , "
    "# drop delay duplicate split at reorder next corrupt payload header byte random truncate to set size withhold fd "
    "fds add eventfd disconnect front-end reset memory change pass 0 1 2 0x9 +4 -1 50ms 0.1 SET_OWNER GET_CONFIG"
)


@given(st.one_of(st.text(), st.lists(st.sampled_from([*WORDS.split(), "\n"]), max_size=30).map(" ".join)))
def test_any_text_is_a_script_or_has_a_mistake_of_one_line(text: str) -> None:
    mistake = "f:"
    try:
        parse_script(text, "f")
    except UsageError as error:
        mistake = str(error)
    assert mistake.startswith("f:")
    assert "\n" not in mistake
