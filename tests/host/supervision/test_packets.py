"""Packets between the supervisor and a worker, and what is kept of a session."""

import os
import socket
import time
from dataclasses import replace

import pytest

from host.supervision.packets import (
    PACKET_MAX,
    Kind,
    Legacy,
    Packet,
    Piece,
    answer_packets,
    parse_legacy,
    parse_packet,
    split_kept,
    split_length,
    split_number,
    with_kept,
    with_length,
    with_number,
)
from host.supervision.supervised_vm import SupervisedVm
from tests.harness.processes import DEADLINE


def test_packet_is_what_it_was() -> None:
    packet = Packet(Kind.PIECE, 70000, b"body", (3, 4))
    assert parse_packet(packet.build(), (3, 4)) == packet
    for number in (1, 0xFFFFFFFF, 0x100000000, (1 << 56) - 1):
        assert parse_packet(packet.build(number), (3, 4)) == replace(packet, number=number)
    assert split_kept(with_kept(b"journal", {3, 1}, b"reply")) == (b"journal", {1, 3}, b"reply")
    legacy = Legacy(
        journal=b"{}", pieces=(Piece(b"\0\1", (2,), "no"), Piece(b"")), taken=False, records={2: 5}, next_file=9
    )
    assert parse_legacy(legacy.build()) == legacy


@pytest.mark.parametrize("length", [0, 1, PACKET_MAX - 17, PACKET_MAX - 16, PACKET_MAX - 15, 3 * PACKET_MAX])
def test_answer_of_any_length_comes_in_packets(length: int) -> None:
    answer = os.urandom(length)
    packets = list(answer_packets(7, answer))
    assert [packet.kind for packet in packets] == [Kind.PART] * (len(packets) - 1) + [Kind.ANSWER]
    assert all(len(packet.build()) <= PACKET_MAX for packet in packets)
    assert [split_number(packet.body)[0] for packet in packets] == [7] * len(packets)
    assert b"".join(split_number(packet.body)[1] for packet in packets) == answer


def memfd() -> int:
    return os.memfd_create("test")


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def wait_until_closed(fd: int) -> None:
    """Wait until ``fd`` is closed, on a thread."""
    deadline = time.monotonic() + DEADLINE
    while is_open(fd):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_machine_is_handed_over_with_the_files_that_count() -> None:
    ours, theirs = socket.socketpair()
    vm = SupervisedVm(3, theirs)
    assert [packet.kind for packet in vm.hand_over()] == [Kind.ATTACH]
    files = [memfd() for _ in range(4)]
    vm.came(Packet(Kind.PIECE, 3, with_length(b"", b"one"), tuple(files[:2])))
    vm.taken()
    assert vm.handled(Packet(Kind.HANDLED, 3, with_kept(b"journal", {1}, b"reply"))) == b"reply"
    wait_until_closed(files[0])
    assert all(is_open(fd) for fd in files[1:])
    vm.came(Packet(Kind.PIECE, 3, with_length(b"unfit", b"two"), (files[2],)))
    vm.record(Packet(Kind.RECORD, 3, with_number(2, b""), (files[3],)))
    *_, sent, taken = vm.hand_over()
    assert (sent.kind, sent.body, sent.fds) == (Kind.FILES, b"[1, 2, 3]", tuple(files[1:]))
    assert parse_legacy(split_length(taken.body)[1]) == Legacy(
        journal=b"journal", pieces=(Piece(b"two", (2,), "unfit"),), taken=False, records={2: 3}, next_file=4
    )
    assert taken.fds == (theirs.fileno(),)
    vm.close()
    for fd in files[1:]:
        wait_until_closed(fd)
    assert ours.recv(1) == b""
    ours.close()
