"""The free lists of a guest that is a process."""

import threading
from pathlib import Path

import pytest

from guest.mm.page_alloc import PageAllocator
from guest.mm.views.free_lists import FREE_LISTS, free_lists, free_lists_text
from protocol.errors import BalloonError
from protocol.units import MIB
from scripts.scenario.real import guest_lists
from scripts.scenario.real.guest_lists import GuestLists
from scripts.scenario.real.real_machine import control_socket, guest_command
from scripts.scenario.scenario import VmKind, VmSpec
from tests.harness.processes import DEADLINE

GUEST = PageAllocator(4096, min_free_kbytes=0)
CONTROL = Path("a.ctl")


class Guests:
    """Control sockets that answer when they are let."""

    def __init__(self) -> None:
        self.may_answer = threading.Semaphore(0)
        self.asked: list[Path] = []

    def ask(self, path: Path, command: str) -> str:
        assert command == FREE_LISTS
        self.asked.append(path)
        assert self.may_answer.acquire(timeout=DEADLINE)
        if path.name == "gone.ctl":
            raise BalloonError("no guest")
        return free_lists_text(GUEST) if path == CONTROL else "what?"

    def answer(self) -> None:
        self.may_answer.release()
        for thread in threading.enumerate():
            if thread.name == "free lists":
                thread.join(DEADLINE)


@pytest.fixture
def guests(monkeypatch: pytest.MonkeyPatch) -> Guests:
    guests = Guests()
    monkeypatch.setattr(guest_lists, "ask", guests.ask)
    return guests


def test_a_question_is_waited_for_by_a_thread_alone(guests: Guests) -> None:
    lists = GuestLists()
    assert lists.latest(CONTROL) is None
    assert lists.latest(CONTROL) is None
    assert guests.asked == [CONTROL]
    guests.answer()
    assert lists.latest(CONTROL) == free_lists(GUEST)
    guests.answer()
    assert guests.asked == [CONTROL, CONTROL]


@pytest.mark.parametrize("name", ["gone.ctl", "other.ctl"])
def test_no_lists_without_a_guest_that_answers(guests: Guests, name: str) -> None:
    lists = GuestLists()
    for _ in range(2):
        assert lists.latest(Path(name)) is None
        guests.answer()


def test_an_answer_is_not_that_of_another_guest(guests: Guests) -> None:
    lists = GuestLists()
    lists.latest(CONTROL)
    guests.answer()
    assert lists.latest(Path("other.ctl")) is None
    guests.answer()


def test_an_emulated_guest_has_a_control_socket_where_its_path_fits() -> None:
    spec = VmSpec(name="a", memory_bytes=64 * MIB)
    short = Path("/run/x")
    assert control_socket(spec, short) == short / "vm-a.ctl"
    assert guest_command(spec, short, short / "socket", 0, ledger=False).count("/run/x/vm-a.ctl") == 1
    assert control_socket(VmSpec(name="a" * 100, memory_bytes=64 * MIB), short) is None
    linux = VmSpec(name="a", memory_bytes=64 * MIB, kind=VmKind.LINUX, command="true")
    assert control_socket(linux, short) is None
    assert "--control" not in guest_command(linux, short, short / "socket", 0, ledger=False)
