"""A machine whose memory can be cut short has a worker of its own, and takes no other machine's with it."""

from pathlib import Path

import pytest

from protocol.memory import PAGE_SIZE, GuestAddress, MemoryRegion, UserAddress
from protocol.vhost_user import FrontendRequest
from tests.harness.processes import DaemonProcess, until
from tests.harness.virtual_machine import DATA_AT, GUEST_BASE, USER_BASE, Ram, VirtualMachine

CHAINS = 16


def pid_of(daemon: DaemonProcess, vm: int) -> int:
    """Return the process of the worker that serves a machine."""
    until(lambda: any(f"(vm {vm})" in title for title in daemon.workers().values()), f"a worker for vm {vm} alone")
    (pid,) = [pid for pid, title in daemon.workers().items() if f"(vm {vm})" in title]
    return pid


def test_it_has_a_worker_from_its_memory_table_on_which_ends_with_it(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path, "--workers", "1") as daemon, VirtualMachine(daemon.socket_path) as neighbour:
        neighbour.check_alive()
        shared = daemon.serving_pid
        with VirtualMachine(daemon.socket_path, ram=Ram(sealed=False)) as machine:
            machine.check_alive()
            assert daemon.events.wait("taken_over", vm=2)["pid"] == pid_of(daemon, 2) != shared
            assert pid_of(daemon, 1) == shared
            with VirtualMachine(daemon.socket_path) as third:  # a machine with sealed memory does not join it
                third.check_alive()
                assert pid_of(daemon, 2) != shared
        event = daemon.settled(2)
        assert (event["reason"], event["reports"]) == ("front-end gone", 1)
        until(lambda: list(daemon.workers()) == [shared], "its worker has ended")
        neighbour.check_alive()
        assert not daemon.events.all("worker_ended")


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_rings_that_run_go_on_in_the_new_worker(tmp_path: Path, packed: bool) -> None:
    options = ("--workers", "1", *(("--features", "packed=on") if packed else ()))
    with DaemonProcess(tmp_path, *options) as daemon, VirtualMachine(daemon.socket_path, packed=packed) as machine:
        machine.check_alive()
        pages = list(range(DATA_AT, DATA_AT + CHAINS * 2 * PAGE_SIZE, 2 * PAGE_SIZE))
        machine.ram.touch(DATA_AT, CHAINS * 2 * PAGE_SIZE)
        before = machine.ram.pages()
        added = [machine.reporting.driver.add((), [(GUEST_BASE + page, PAGE_SIZE)]) for page in pages]
        more = Ram(sealed=False)
        beyond = MemoryRegion(
            guest_address=GuestAddress(GUEST_BASE + 2 * machine.ram.size),
            size=more.size,
            user_address=UserAddress(USER_BASE + 2 * machine.ram.size),
            mmap_offset=0,
        )
        machine.reporting.kick()
        assert machine.ask(FrontendRequest.ADD_MEM_REG, beyond, [more.fd]) == 0
        assert machine.reporting.collect(CHAINS) == added
        daemon.events.wait("taken_over", vm=1)
        machine.check_alive()
        assert machine.reporting.driver.get_used() is None
        assert machine.ram.pages() == (before - set(pages)) | {DATA_AT + PAGE_SIZE}
        more.close()
