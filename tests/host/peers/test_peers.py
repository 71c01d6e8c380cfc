"""The resources of one peer leave the others theirs, and every refusal names its limit."""

import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import host.peers.peers
from host.peers.peers import RESERVE, SESSION_DESCRIPTORS, SESSIONS_MAX, PeerLimitError, Peers, shared_descriptors
from host.peers.workers import PeerId
from protocol.message_limits import FDS_MAX

SHARED = 1000
GREEDY, SAME_USER, OTHER_USER = PeerId(1000, 1), PeerId(1000, 2), PeerId(1001, 3)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peers]:
    monkeypatch.setattr(host.peers.peers, "shared_descriptors", lambda: SHARED)
    with ThreadPoolExecutor(1) as executor:
        yield Peers(executor)


def test_process_may_have_half_its_user_three_quarters_and_all_the_rest(peers: Peers) -> None:
    for peer, held, limit in (
        (GREEDY, SHARED // 2, "process 1: 501 descriptors would be held, 500 is the most"),
        (SAME_USER, SHARED // 4, "user 1000: 751 descriptors would be held, 750 is the most"),
        (OTHER_USER, SHARED // 4, "all processes together: 1001 descriptors would be held, 1000 is the most"),
    ):
        member = peers.join(peer)
        member.held = lambda held=held: held - SESSION_DESCRIPTORS  # type: ignore[misc]
        member.check(0)
        with pytest.raises(PeerLimitError, match=limit):
            member.check(1)


def test_limits_are_given_back_when_a_session_leaves(peers: Peers) -> None:
    members = [peers.join(GREEDY) for _ in range(SHARED // 2 // SESSION_DESCRIPTORS)]
    peers.check_session(GREEDY)
    members.append(peers.join(GREEDY))
    with pytest.raises(PeerLimitError, match="process 1"):
        peers.check_session(GREEDY)
    members.pop().leave()
    peers.check_session(GREEDY)
    for member in members:
        member.leave()
    peers.join(GREEDY).check(SHARED // 2 - SESSION_DESCRIPTORS)


def test_sessions_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host.peers.peers, "shared_descriptors", lambda: 1 << 20)
    with ThreadPoolExecutor(1) as executor:
        peers = Peers(executor)
        for _ in range(SESSIONS_MAX):
            peers.join(GREEDY)
            peers.check_session(GREEDY)
        peers.join(GREEDY)
        with pytest.raises(PeerLimitError, match=f"process 1 has {SESSIONS_MAX} sessions"):
            peers.check_session(GREEDY)
        peers.join(SAME_USER)
        peers.check_session(SAME_USER)


def test_sessions_of_a_process_share_its_helpers(peers: Peers) -> None:
    one, two, other = peers.join(GREEDY), peers.join(GREEDY), peers.join(SAME_USER)
    assert one.helpers is two.helpers
    assert one.helpers is not other.helpers


@pytest.mark.asyncio
async def test_process_that_comes_back_has_the_helpers_that_its_last_session_blocked(peers: Peers) -> None:
    let_go = threading.Event()
    first, neighbour = peers.join(GREEDY), peers.join(SAME_USER)
    first.helpers.close_by(let_go.wait)  # type: ignore[arg-type]
    first.leave()
    third = peers.join(PeerId(1000, 4))
    neighbour.held = lambda: SHARED // 2 - SESSION_DESCRIPTORS
    third.held = lambda: SHARED // 4 - 2 * SESSION_DESCRIPTORS - 1  # and one that is not closed
    neighbour.recount()
    third.recount()
    again = peers.join(GREEDY)
    again.check(0)
    with pytest.raises(PeerLimitError, match="user 1000: 751 descriptors would be held, 750 is the most"):
        again.check(1)
    assert again.helpers.closing == 1
    let_go.set()
    await again.helpers.closed()
    assert again.helpers.closing == 0


def test_a_check_asks_the_other_sessions_only_if_it_would_refuse(peers: Peers) -> None:
    """Hundreds of sessions begin at once, with a dozen messages that bring descriptors each."""
    asked = 0

    def ask() -> int:
        nonlocal asked
        asked += 1
        return 60

    others = [peers.join(PeerId(1001, number)) for number in range(2, 10)]
    for other in others:
        other.held = ask
        other.recount()
    member, asked = peers.join(GREEDY), 0
    for _ in range(100):
        member.check(100)
    assert asked == 0
    with pytest.raises(PeerLimitError, match="all processes together: 1001 descriptors would be held"):
        member.check(SHARED + 1 - SESSION_DESCRIPTORS - len(others) * (SESSION_DESCRIPTORS + 60))


def test_fewer_descriptors_than_at_the_last_message_are_not_refused(peers: Peers) -> None:
    held = SHARED - 3 * SESSION_DESCRIPTORS
    other = peers.join(OTHER_USER)
    other.held = lambda: held
    other.recount()
    member = peers.join(GREEDY)
    with pytest.raises(PeerLimitError, match="all processes together"):
        member.check(SESSION_DESCRIPTORS + 1)
    held -= 1
    member.check(SESSION_DESCRIPTORS + 1)


def test_reserve_has_room_for_a_message_that_is_not_counted_yet() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert RESERVE > FDS_MAX
    assert shared_descriptors() == limit - RESERVE


def test_front_ends_of_another_pid_namespace_are_peers_of_their_own(peers: Peers) -> None:
    """They all have the number 0 here."""
    one, two = (peers.identify(1000, 0) for _ in range(2))
    assert one != two
    assert peers.join(one).helpers is not peers.join(two).helpers
    assert peers.identify(1000, 7) == peers.identify(1000, 7)
