"""The journal of any session leads a new one to the same place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from host.supervision.journal import (
    HeldFiles,
    Journal,
    compact,
    end_recovery,
    parse_journal,
    prepare,
    settle,
    standing_of,
)
from host.vhost_user.session import MustClose, Session
from host.vhost_user.vring import RingState, Vring
from protocol.errors import VhostUserError
from protocol.vhost_user import FrontendRequest
from tests.host.vhost_user.test_any_session import EVERYTHING, shell_of_everything, telling_messages
from tests.pair.session import REGION, Shell, negotiated, set_up


def journal_of(session: Session) -> Journal:
    """Return the journal of a session whose files have made-up numbers."""
    queues = range(len(session.vrings))
    held = HeldFiles(
        regions=tuple(range(500, 500 + len(session.table.regions))),
        kicks={index: 10 + index for index in queues},
        calls={index: 20 + index for index in queues},
        channel=9 if session.has_backend_channel else None,
    )
    return Journal(entries=tuple(compact(session, held)), standing=standing_of(session))


def replay(journal: Journal, offered: int) -> Shell:
    """Return a shell with a new session that the journal, written down and read again, was replayed in."""
    shell = Shell(offered)
    journal = parse_journal(journal.build())
    prepare(shell.session, journal.standing)
    for entry in journal.entries:
        shell.receive(entry.data, entry.files)
    settle(shell.session, journal.standing)
    return shell


def facts(session: Session) -> dict[str, object]:
    """Return what has to be equal. A broken ring becomes one that was stopped; the base of a ring that runs is where it
    began."""
    return {
        "features": (session.features, session.features_accepted, session.protocol_features),
        "memory": session.table.regions,
        "owned": session.owned,
        "channel": session.has_backend_channel,
        "status": session.status,
        "quiet": session.is_quiet,
        "dialect": session.queue_numbers.dialect,
        "rings": [ring_facts(vring) for vring in session.vrings],
    }


def ring_facts(vring: Vring) -> tuple[object, ...]:
    state = RingState.STOPPED if vring.state is RingState.BROKEN else vring.state
    return (state, vring.enabled, vring.size, vring.address, vring.address_set, vring.left_at, vring.base)


@pytest.mark.parametrize("bit_30", [True, False])
def test_running_session_is_there_again(bit_30: bool) -> None:
    shell = negotiated(bit_30=bit_30)
    for index in range(3):
        set_up(shell, index)
    again = replay(journal_of(shell.session), shell.session.offered)
    assert facts(again.session) == facts(shell.session)
    assert {index: ring.queue for index, ring in again.running.items()} == {
        index: ring.queue for index, ring in shell.running.items()
    }
    assert all(ring.recovers for ring in again.running.values())
    end_recovery(again.session, standing_of(shell.session))
    assert not any(vring.recovers for vring in again.session.vrings)


def test_ring_whose_memory_has_gone_waits_for_it_again() -> None:
    shell = negotiated()
    set_up(shell, 0)
    assert shell.memory() == 0
    again = replay(journal_of(shell.session), shell.session.offered)
    assert not again.running
    assert again.memory(REGION) == 0
    assert set(again.running) == {0}


def test_journal_does_not_grow() -> None:
    shell = negotiated()
    set_up(shell, 0)
    entries = journal_of(shell.session).entries
    for _ in range(100):
        shell.ring("CALL", 0, 30)
        shell.ring("ENABLE", 0, 0)
        shell.ring("ENABLE", 0, 1)
        shell.memory(REGION)
    assert journal_of(shell.session).entries == entries


def test_journal_of_another_version_is_refused() -> None:
    assert parse_journal(b"") == Journal()
    data = Journal().build()
    with pytest.raises(VhostUserError, match="version 2, not 1"):
        parse_journal(data.replace(b'"version":1', b'"version":2'))
    with pytest.raises(VhostUserError, match="cannot be read"):
        parse_journal(data[:-1])
    for made_up in (b"[" * 100_000, b"7", data.replace(b'"messages":[', b'"messages":[7'), b"\xff"):
        with pytest.raises(VhostUserError, match="cannot be read"):
            parse_journal(made_up)


@pytest.mark.long
@given(steps=st.lists(telling_messages() | st.integers(0, 4), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_session_is_there_again(steps: list[tuple[FrontendRequest, bytes, tuple[int, ...]] | int]) -> None:
    """A bare number is a ring that its driver breaks."""
    shell = shell_of_everything()
    for step in steps:
        if isinstance(step, int):
            if shell.session.vrings[step].running:
                shell.ring_broke(step)
            continue
        _, data, fds = step
        try:
            shell.receive(data, fds)
        except MustClose:
            return
    again = replay(journal_of(shell.session), EVERYTHING)
    assert facts(again.session) == facts(shell.session)
    assert again.running.keys() == shell.running.keys()
