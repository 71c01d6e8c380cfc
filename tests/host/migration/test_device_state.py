"""The state that travels: its content, and the refusal of everything else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.migration.device_state import FORMAT, STATE_BYTES_MAX, VERSION, DeviceState, parse_state
from protocol.errors import VhostUserError

U32 = st.integers(0, (1 << 32) - 1)
STATES = st.builds(
    DeviceState,
    num_pages=U32,
    actual=U32,
    poison_val=st.none() | U32,
    last_command_id=st.integers(1, (1 << 32) - 1),
    statistics_interval=st.just(0.0) | st.floats(0.01, 1e6),
    counters=st.dictionaries(st.text("abc_", min_size=1, max_size=8), st.integers(0, (1 << 64) - 1), max_size=10),
)
STATE = DeviceState(
    num_pages=1024,
    actual=1000,
    poison_val=0xAAAAAAAA,
    last_command_id=7,
    statistics_interval=2.5,
    counters={"reports": 3},
)


def document(**changes: Any) -> bytes:
    return json.dumps(json.loads(STATE.build()) | changes).encode()


@given(STATES)
def test_state_that_was_written_is_read(state: DeviceState) -> None:
    data = state.build()
    assert len(data) < STATE_BYTES_MAX
    assert parse_state(data) == state


def test_document_says_what_it_is() -> None:
    assert json.loads(STATE.build()) == {
        "format": FORMAT,
        "version": VERSION,
        "num_pages": 1024,
        "actual": 1000,
        "poison_val": 0xAAAAAAAA,
        "last_command_id": 7,
        "statistics_interval": 2.5,
        "counters": {"reports": 3},
    }


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a JSON document"),
        (b"\xff\xfe", "not a JSON document"),
        (b"[" * 4000, "not a JSON document"),
        (b"1" * 4096, "not "),
        (b"[]", "not one of this device"),
        (b"null", "not one of this device"),
        (document(format="another"), "not one of this device"),
        (document(version=2), "has version 2, not 1"),
        (document(version=None), "has version None"),
        (document(more=1), "'more'"),
        (document(num_pages=-1), "num_pages"),
        (document(num_pages=1 << 32), "num_pages"),
        (document(actual=1.0), "actual"),
        (document(actual=True), "actual"),
        (document(poison_val="0"), "poison_val"),
        (document(last_command_id=0), "last_command_id"),
        (document(hinting=True), "'hinting'"),
        (document(statistics_interval=-1), "statistics_interval"),
        (document(statistics_interval=0.001), "statistics_interval"),
        (document(statistics_interval=float("nan")), "statistics_interval"),
        (document(statistics_interval=float("inf")), "statistics_interval"),
        (document(counters=[]), "counters"),
        (document(counters={"reports": -1}), "reports"),
        (document(counters={"r" * 400: "x"}), "r" * 40),
        (document(counters={str(i): i for i in range(65)}), "counters"),
        (document(counters={"c" * 4096: 1}), "more than 4096 bytes"),
        (STATE.build()[:-1], "not a JSON document"),
        (json.dumps({"format": FORMAT, "version": VERSION}).encode(), "'actual'"),
    ],
)
def test_malformed_state_is_refused_in_one_line(data: bytes, why: str) -> None:
    with pytest.raises(VhostUserError, match=why) as refusal:
        parse_state(data)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


@pytest.mark.long
@given(
    st.binary(max_size=200)
    | st.recursive(U32 | st.none() | st.text(), lambda inner: st.lists(inner)).map(json.dumps).map(str.encode)
)
def test_random_bytes_as_a_state_are_refused(data: bytes) -> None:
    with pytest.raises(VhostUserError):
        parse_state(data)
