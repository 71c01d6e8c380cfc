"""The error tree: who is to blame decides what has to end, so the branches must not mix."""

import pytest

from protocol.errors import (
    BalloonError,
    FramingError,
    PeerError,
    SessionEnded,
    UsageError,
    VhostUserError,
    VirtqueueError,
)


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (BalloonError, {BalloonError}),
        (UsageError, {UsageError, BalloonError}),
        (PeerError, {PeerError, BalloonError}),
        (VhostUserError, {VhostUserError, PeerError, BalloonError}),
        (FramingError, {FramingError, VhostUserError, PeerError, BalloonError}),
        (VirtqueueError, {VirtqueueError, PeerError, BalloonError}),
        (SessionEnded, {SessionEnded, BalloonError}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_errors_have_exactly_their_own_branch(error: type[BalloonError], bases: set[type[BalloonError]]) -> None:
    assert {base for base in error.__mro__ if issubclass(base, BalloonError)} == bases
    assert issubclass(error, Exception)


def test_broken_ring_does_not_refuse_a_message() -> None:
    assert not issubclass(VirtqueueError, VhostUserError)


def test_text_of_an_error_is_what_a_person_reads() -> None:
    assert str(VirtqueueError("available index is 9 ahead in a ring of 4")) == (
        "available index is 9 ahead in a ring of 4"
    )
