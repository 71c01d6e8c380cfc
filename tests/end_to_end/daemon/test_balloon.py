"""The balloon's own rules with real memory: inflating, deflating, poison, and a daemon that must not discard."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.memory import PAGE_SIZE
from protocol.vhost_user import FrontendRequest
from protocol.vhost_user_payloads import DeviceConfig, VringState
from protocol.virtio import feature_mask
from protocol.virtio_balloon import CONFIG_POISON_VAL, BalloonFeature
from tests.end_to_end.conftest import Scene
from tests.harness.processes import DaemonProcess
from tests.harness.virtual_machine import (
    DATA_AT,
    DEFLATE,
    GUEST_BASE,
    INFLATE,
    RAM_BYTES,
    REPORTING,
    WANTED,
    VirtualMachine,
)

P = PAGE_SIZE
POISON = feature_mask(BalloonFeature.PAGE_POISON)


def pfns(*offsets: int) -> bytes:
    return b"".join(struct.pack("<I", (GUEST_BASE + offset) >> 12) for offset in offsets)


@pytest.fixture
def machine(scene: Scene) -> VirtualMachine:
    """A virtual machine with sixteen pages in use."""
    machine = scene.machine()
    machine.ram.touch(DATA_AT, 16 * P)
    return machine


def test_inflating_releases_exactly_the_named_pages(scene: Scene, machine: VirtualMachine) -> None:
    before = machine.ram.pages()
    named = [DATA_AT + i * P for i in (5, 1, 2, 3, 2, 9)]
    machine.send_pfns(INFLATE, pfns(*named))
    assert machine.ram.pages() == before - set(named)
    assert not machine.ram.spoilt_pages()
    event = scene.daemon.events.wait("inflate", vm=machine.client.number)
    assert (event["ranges"], event["bytes"], event["discarded_bytes"]) == (3, 5 * P, 5 * P)


def test_deflating_touches_nothing(scene: Scene, machine: VirtualMachine) -> None:
    before = machine.ram.pages()
    machine.send_pfns(DEFLATE, pfns(DATA_AT, DATA_AT + P))
    assert machine.ram.pages() == before
    assert scene.daemon.events.wait("deflate", vm=machine.client.number)["discarded_bytes"] == 0


@pytest.mark.parametrize(
    ("data", "incidents"),
    [
        (b"", []),
        (b"\x01", []),
        (pfns(DATA_AT)[:3], []),
        (struct.pack("<I", 0xFFFFFFFF), ["out_of_range"]),
        (struct.pack("<I", 0), ["out_of_range"]),
        (pfns(RAM_BYTES), ["out_of_range"]),
        (pfns(0), ["ring_memory"]),
    ],
)
def test_page_numbers_that_mean_nothing(
    scene: Scene, machine: VirtualMachine, data: bytes, incidents: list[str]
) -> None:
    before = machine.ram.pages()
    machine.send_pfns(INFLATE, data)
    assert machine.ram.pages() == before
    machine.send_pfns(INFLATE, pfns(DATA_AT) + b"odd")
    assert machine.ram.pages() == before - {DATA_AT}
    scene.expect(machine, *(("refused", reason) for reason in incidents))


def test_bad_page_number_beside_a_good_one(scene: Scene, machine: VirtualMachine) -> None:
    """Neighbouring pages may be discarded in one go, but each is judged by itself."""
    machine.ram.touch(RAM_BYTES - P, P)
    machine.ram.touch(3 * 0x8000, P)  # the first page past the last ring
    before = machine.ram.pages(0)
    machine.send_pfns(INFLATE, pfns(RAM_BYTES, RAM_BYTES - P, 3 * 0x8000, 3 * 0x8000 - P * 2, DATA_AT + P))
    assert before - machine.ram.pages(0) == {RAM_BYTES - P, 3 * 0x8000, DATA_AT + P}
    scene.expect(machine, *(("refused", reason) for reason in ("ring_memory", "out_of_range")))


def test_array_of_page_numbers_past_the_limit(scene: Scene, machine: VirtualMachine) -> None:
    """64 KiB of it are believed, the rest is not even read."""
    before = machine.ram.pages()
    data = pfns(DATA_AT) * (1 << 14) + pfns(DATA_AT + P) * (1 << 12)
    machine.send_pfns(INFLATE, data)
    assert machine.ram.pages() == before - {DATA_AT}
    scene.expect(machine, ("refused", "too_long"))


def test_array_of_page_numbers_outside_the_memory_breaks_the_ring(scene: Scene, machine: VirtualMachine) -> None:
    queue = machine.queues[INFLATE]
    queue.driver.add([(GUEST_BASE + RAM_BYTES - 4, 8)], ())
    queue.kick()
    scene.expect(machine, ("queue_stopped", str(INFLATE)))
    machine.check_alive()


def test_writable_buffers_on_the_inflate_queue_are_not_pages(machine: VirtualMachine) -> None:
    before = machine.ram.pages()
    queue = machine.queues[INFLATE]
    queue.driver.add((), [(GUEST_BASE + DATA_AT, P)])
    queue.kick()
    queue.collect()
    assert machine.ram.pages() == before


# -- daemons with other options ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., DaemonProcess]]:
    """Start daemons with options, one for each combination."""
    daemons: dict[tuple[str, ...], DaemonProcess] = {}

    def start(*options: str) -> DaemonProcess:
        if options not in daemons:
            daemons[options] = DaemonProcess(Path(tmp_path_factory.mktemp("daemon")), *options)
        return daemons[options]

    yield start
    for daemon in daemons.values():
        with daemon:
            pass


def poisoned_machine(daemon: DaemonProcess, poison: int, *, wanted: int = WANTED | POISON) -> VirtualMachine:
    machine = VirtualMachine(daemon.socket_path, wanted=wanted, run=False)
    machine.client.number = daemon.events.wait("connected")["vm"]
    config = DeviceConfig(offset=CONFIG_POISON_VAL.start, flags=0, data=struct.pack("<I", poison))
    assert machine.ask(FrontendRequest.SET_CONFIG, config) == 0
    machine.set_memory()
    for queue in machine.queues:
        machine.start(queue)
    machine.ram.touch(DATA_AT, 4 * P)
    return machine


def test_poison_of_zero_is_what_a_discard_leaves(start_daemon: Callable[..., DaemonProcess]) -> None:
    with poisoned_machine(start_daemon("--page-poison", "on"), 0) as machine:
        machine.report((DATA_AT, P))
        assert machine.ram.pages() == {DATA_AT + i * P for i in (1, 2, 3)}


def test_poisoned_pages_are_acknowledged_and_kept(start_daemon: Callable[..., DaemonProcess]) -> None:
    daemon = start_daemon("--page-poison", "on")
    with poisoned_machine(daemon, 0xAAAAAAAA) as machine:
        before = machine.ram.pages()
        machine.report((DATA_AT, P), (DATA_AT + P, P))
        machine.send_pfns(INFLATE, pfns(DATA_AT + 2 * P))
        assert machine.ram.pages() == before
        assert not machine.ram.spoilt_pages()
        daemon.events.wait_for_count("refused", 1, vm=machine.client.number, reason="poison", ranges=2)


@pytest.mark.parametrize(("first", "second"), [(0xAA, 0), (0, 0xAA)])
def test_poison_is_settled_once_the_device_is_in_use(
    start_daemon: Callable[..., DaemonProcess], first: int, second: int
) -> None:
    with poisoned_machine(start_daemon("--page-poison", "on"), first) as machine:
        machine.report((DATA_AT, P))
        config = DeviceConfig(offset=CONFIG_POISON_VAL.start, flags=0, data=struct.pack("<I", second))
        assert machine.ask(FrontendRequest.SET_CONFIG, config) == 0
        machine.report((DATA_AT, P), (DATA_AT + P, P))
        assert (DATA_AT + P in machine.ram.pages()) == (first != 0)


def test_poison_that_was_not_negotiated_cannot_be_written(start_daemon: Callable[..., DaemonProcess]) -> None:
    with poisoned_machine(start_daemon("--page-poison", "on"), 0xAA, wanted=WANTED) as machine:
        machine.report((DATA_AT, P))
        assert DATA_AT not in machine.ram.pages()


def test_daemon_that_must_not_discard_acknowledges(start_daemon: Callable[..., DaemonProcess]) -> None:
    daemon = start_daemon("--discard", "none")
    with VirtualMachine(daemon.socket_path) as machine:
        number = daemon.events.wait("connected")["vm"]
        machine.ram.touch(DATA_AT, 4 * P)
        before = machine.ram.pages()
        machine.report((DATA_AT, P), (DATA_AT + 1, 2))
        machine.send_pfns(INFLATE, pfns(DATA_AT + P))
        assert machine.ram.pages() == before
    gone = daemon.settled(number)
    assert (gone["reports"], gone["discarded_bytes"], gone["refused"]) == (1, 0, {"discard_off": 3})


def test_target_size_is_read_by_the_driver(start_daemon: Callable[..., DaemonProcess]) -> None:
    with VirtualMachine(start_daemon("--balloon", "64M", "--guest-memory", "1G").socket_path) as machine:
        config = machine.client.perform(machine.frontend.get_config())
        assert (config.num_pages, config.actual) == (16384, 0)
        for _ in range(2):
            assert machine.ask(FrontendRequest.RESET_DEVICE) == 0
        assert machine.client.perform(machine.frontend.get_config()).num_pages == 16384
        assert machine.ask(FrontendRequest.GET_VRING_BASE, VringState(REPORTING, 0)) == VringState(REPORTING, 0)
