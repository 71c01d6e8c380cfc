"""What a supervisor keeps of its machines with a manager, and what the next one makes of it."""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from host.configuration.device_options import DEFAULT_DEVICE, parse_device_options
from host.supervision.journal import Journal
from host.supervision.packets import Kind, Packet, parse_legacy, split_length, with_kept, with_length
from host.supervision.stored_machines import StoredMachines
from host.supervision.supervised_vm import SupervisedVm
from host.vm_store.same_file import is_same_file
from host.vm_store.vm_record import PLACE_AT
from host.vm_store.vm_store import KeptVm, name_of
from tests.harness.descriptor_store import DescriptorStore

LINK = "worker1.01234567"
DEVICE = replace(DEFAULT_DEVICE, name="web", balloon_pages=7)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[DescriptorStore]:
    """A manager."""
    with contextlib.closing(DescriptorStore(tmp_path / "notify")) as manager:
        yield manager


@pytest.fixture
def front_end() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection: the daemon's end and the front-end's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def new_vm(manager: DescriptorStore, sock: socket.socket) -> SupervisedVm:
    """Return machine 1 as the supervisor begins it."""
    vm = SupervisedVm(1, sock.dup(), DEVICE)
    vm.keep(KeptVm.begin(manager.side, 1))
    manager.look()
    vm.is_with(LINK)
    return vm


def piece(*fds: int, number: int) -> Packet:
    """Return a piece of a message with copies of descriptors."""
    return Packet(Kind.PIECE, 1, with_length(b"", b"abc"), tuple(map(os.dup, fds)), number=number)


def handled(kept: set[int], reply: bytes = b"", *, number: int) -> Packet:
    """Return the word that a message was carried out."""
    return Packet(Kind.HANDLED, 1, with_kept(Journal(stated_bytes=number).build(), kept, reply), number=number)


def recover(manager: DescriptorStore) -> list[SupervisedVm]:
    """Return the machines that the next supervisor goes on with."""
    stored = StoredMachines(manager.side, manager.hand_over())
    for sock in stored.links.values():
        sock.close()
    return stored.vms


def legacy_of(vm: SupervisedVm) -> Packet:
    """Return what a worker is given of a machine."""
    *_, last = vm.hand_over()
    return last


@pytest.mark.asyncio
async def test_machine_goes_on_as_it_was_with_a_message_in_hand(
    manager: DescriptorStore, front_end: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    vm = new_vm(manager, front_end[0])
    first, second = os.memfd_create("a"), os.memfd_create("b")
    vm.came(piece(first, first, second, number=1))
    vm.note(LINK, 1)
    manager.look()
    vm.handled(handled({0, 1}, number=2))
    vm.note(LINK, 2)
    # One open file has one name, and the second is needed no longer.
    names = [name_of(1, what) for what in ("connection", "file0", "record", "replies")]
    assert manager.look() == names
    vm.came(piece(second, number=3))
    vm.note(LINK, 3)
    (later,) = recover(manager)
    assert later.number == 1
    assert later.link == LINK
    assert [later.counts_already(LINK, number) for number in (3, 4)] == [True, False]
    assert not later.counts_already("worker1.89abcdef", 1)
    assert later.process == os.getpid()
    packets = list(later.hand_over())
    assert [packet.kind for packet in packets] == [Kind.FILES, Kind.TAKE_OVER]
    for fd, same in zip(packets[0].fds, (first, first, second), strict=True):
        assert is_same_file(fd, same)
    device, body = split_length(packets[-1].body)
    assert parse_device_options(device) == DEVICE
    legacy = parse_legacy(body)
    assert [one.data for one in legacy.pieces] == [b"abc"]
    assert not legacy.taken
    assert legacy.next_file == 4
    assert legacy.journal == Journal(stated_bytes=2).build()
    assert not caplog.messages
    vm.let_go()
    later.close()
    assert manager.look() == []
    os.close(first)
    os.close(second)


@pytest.mark.asyncio
async def test_reply_is_sent_once_whoever_sends_it(
    manager: DescriptorStore, front_end: tuple[socket.socket, socket.socket]
) -> None:
    vm = new_vm(manager, front_end[0])
    for number, reply in enumerate((b"first", b"second"), 1):
        vm.came(piece(number=number))
        vm.handled(handled(set(), reply, number=number))
        vm.note(LINK, number)
        if number == 1:
            assert await vm.send_reply(reply, ()) == ""
    vm.handled(handled(set(), b"third", number=3))  # it does not count before it is noted
    (later,) = recover(manager)
    assert later.waiting == len(b"second")
    assert await later.send_reply(b"", ()) == ""
    assert front_end[1].recv(100) == b"firstsecond"
    assert later.waiting == 0
    reading, writing = os.pipe()
    later.handled(handled(set(), b"fourth", number=3))
    later.note(LINK, 3)
    later.try_to_send((reading,))
    assert await later.send_reply(b"fourth", (reading,)) == ""
    data, fds, _, _ = socket.recv_fds(front_end[1], 100, 2)
    assert data == b"fourth"
    for fd in (*fds, writing):
        os.close(fd)
    assert len(fds) == 1
    vm.let_go()
    later.let_go()


@pytest.mark.asyncio
@pytest.mark.parametrize("at_once", [True, False])
async def test_reply_with_a_file_is_sent_once_by_a_supervisor_that_is_killed_meanwhile(
    manager: DescriptorStore, front_end: tuple[socket.socket, socket.socket], at_once: bool
) -> None:
    vm = new_vm(manager, front_end[0])
    file = os.memfd_create("inflight")
    os.write(file, b"chains")
    vm.handled(handled(set(), b"reply", number=1))
    vm.note(LINK, 1)
    vm._store.sent_otherwise = lambda size: None  # type: ignore[method-assign]  # it is killed before
    vm.try_to_send((file,))
    (later,) = recover(manager)
    assert later.waiting == len(b"reply")
    if at_once:
        later.try_to_send((file,))
        assert later.waiting == 0
    assert await later.send_reply(b"", (file,)) == ""
    assert later.waiting == 0
    later.handled(handled(set(), b"next", number=2))
    later.note(LINK, 2)
    assert await later.send_reply(b"next", ()) == ""
    data, fds, _, _ = socket.recv_fds(front_end[1], 100, 2)
    assert (data, len(fds)) == (b"reply", 1)
    assert os.pread(fds[0], 10, 0) == b"chains"
    assert front_end[1].recv(100) == b"next"
    os.close(fds[0])
    vm.let_go()
    later.let_go()


@pytest.mark.asyncio
async def test_queue_of_replies_begins_anew(
    manager: DescriptorStore, front_end: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host.vm_store.vm_store.REPLIES_MAX", 10)
    vm = new_vm(manager, front_end[0])
    for number in range(1, 6):
        vm.handled(handled(set(), b"six by", number=number))
        vm.note(LINK, number)
        (later,) = recover(manager)
        assert later.waiting == 6
        later.let_go()
        assert await vm.send_reply(b"six by", ()) == ""
        manager.look()
    assert front_end[1].recv(100) == b"six by" * 5
    vm.note("worker2.01234567", 7)  # it is not with that one
    vm.note(LINK, 6)
    assert os.fstat(manager.fd(name_of(1, "replies"))).st_size < 12
    (later,) = recover(manager)
    assert later.waiting == 0
    assert [later.counts_already(LINK, number) for number in (6, 7)] == [True, False]
    later.let_go()
    vm.let_go()


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda m: os.pwrite(m.fd("vm1.record"), b"\x01", 16), "what is kept of it has version 1, not 2"),
        (lambda m: os.ftruncate(m.fd("vm1.record"), 0), "what is kept of it cannot be read"),
        (lambda m: os.pwrite(m.fd("vm1.record"), b"\xff" * 4, PLACE_AT), "what is kept of it cannot be read"),
        (lambda m: m.side.remove("vm1.file0"), "1 of its descriptors have not come back"),
        (lambda m: m.side.remove("vm1.record"), "1 of its descriptors have not come back"),
        (lambda m: os.dup2(m.fd("vm1.record"), m.fd("vm1.connection")), "Socket operation on non-socket"),
    ],
    ids=["version", "empty", "place", "file", "record", "connection"],
)
def test_machine_that_cannot_go_on_is_said_in_one_line_and_left(
    manager: DescriptorStore,
    front_end: tuple[socket.socket, socket.socket],
    caplog: pytest.LogCaptureFixture,
    break_it: object,
    said: str,
) -> None:
    vm = new_vm(manager, front_end[0])
    first = os.memfd_create("a")
    vm.came(piece(first, number=1))
    vm.note(LINK, 1)
    manager.look()
    break_it(manager)  # type: ignore[operator]
    assert recover(manager) == []
    assert caplog.messages == [f"vm 1: its session ends: {said}"]
    assert manager.look() == []
    vm.let_go()
    front_end[0].close()
    assert front_end[1].recv(1) == b""
    os.close(first)


def test_journal_of_another_version_is_said(
    manager: DescriptorStore, front_end: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    vm = new_vm(manager, front_end[0])
    newer = Journal().build().replace(b'"version":1', b'"version":9')
    vm.changed(Packet(Kind.JOURNAL, 1, with_kept(newer, set()), number=1))
    vm.note(LINK, 1)
    assert recover(manager) == []
    assert caplog.messages == ["vm 1: its session ends: a journal of version 9, not 1"]
    vm.let_go()


def test_what_a_kill_has_left_over_is_sorted_out(
    manager: DescriptorStore, front_end: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    first = os.memfd_create("a")
    for name in ("vm2.record", "vm2.file7", "mouse", "mouse", LINK):
        manager.side.store(name, first)
    new = SupervisedVm(3, front_end[0].dup(), DEVICE)
    new.keep(KeptVm.begin(manager.side, 3))  # it had just connected
    (vm,) = recover(manager)
    assert caplog.messages == [
        f"{LINK} cannot be a way to a worker: Socket operation on non-socket",
        "descriptors are closed that mean nothing here: mouse",
    ]
    assert manager.look() == ["vm3.connection", "vm3.record", "vm3.replies"]
    assert legacy_of(vm).kind is Kind.ATTACH
    assert parse_device_options(legacy_of(vm).body) == DEVICE
    assert vm.link == ""
    vm.close()
    new.let_go()
    assert manager.look() == []
    os.close(first)
