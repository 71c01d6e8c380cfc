"""The record of a machine: what is written is read, whatever moment the writer was killed at."""

import dataclasses

import pytest

from host.vm_store.vm_record import PAGE, PLACE_AT, VERSION, Place, VmRecord, build_head, parse_head, parse_record
from protocol.errors import BalloonError

RECORD = VmRecord(
    number=3,
    device=b'{"name": "web"}',
    alone=True,
    link="worker1.0123abcd",
    packet=7,
    has_begun=True,
    lasts=True,
    kept=frozenset({1, 2}),
    names={1: "vm3.file1", 2: "vm3.file1"},
    replies_end=20,
    legacy=b"what it leaves",
)


def test_record_is_read_back() -> None:
    assert parse_record(RECORD.build()) == RECORD


@pytest.mark.parametrize("cut", [0, 3, 40, -1])
def test_record_that_is_cut_short_or_of_other_fields_is_refused(cut: int) -> None:
    whole = RECORD.build()
    if cut != -1:
        with pytest.raises(BalloonError, match="cannot be read"):
            parse_record(whole[:cut])
    with pytest.raises(BalloonError, match="cannot be read"):
        parse_record(whole.replace(b'"lasts"', b'"tasls"'))


def test_body_never_overwrites_the_one_that_counts() -> None:
    place = Place()
    for size in (1, PAGE, PAGE + 1, 100 * PAGE, 10, 100 * PAGE, 30 * PAGE, 5, 5, 5):
        following = place.beside(size)
        assert following.page >= 1
        assert following.size == size
        assert following.page + following.pages <= place.page or following.page >= place.page + place.pages
        assert following.page <= 202
        place = following
        assert parse_head(build_head() + place.build()) == place
    assert len(build_head()) == PLACE_AT
    assert PLACE_AT % 8 == 0


def test_record_of_another_version_is_refused_with_both_versions() -> None:
    head = bytearray(build_head() + Place().build())
    head[16] = VERSION + 1
    with pytest.raises(BalloonError, match=f"version {VERSION + 1}, not {VERSION}"):
        parse_head(bytes(head))
    for data in (b"", bytes(64), bytes(head)[: PLACE_AT - 1]):
        with pytest.raises(BalloonError, match="cannot be read"):
            parse_head(data)


def test_records_differ_by_their_fields() -> None:
    assert parse_record(dataclasses.replace(RECORD, packet=8).build()).packet == 8
