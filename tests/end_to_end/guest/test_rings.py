"""The emulated guest with every kind of virtqueue at a real daemon: freed memory returns, and no page is lost."""

from collections.abc import Iterator
from itertools import product
from typing import Final

import pytest

from protocol.virtio import FeatureBit, has_feature
from tests.harness.processes import DaemonProcess, ProgramProcess, until

MIB: Final = 1 << 20
SIZE: Final = 32 * MIB
FEATURES: Final = {
    "--indirect": FeatureBit.RING_INDIRECT_DESC,
    "--event-idx": FeatureBit.RING_EVENT_IDX,
    "--in-order": FeatureBit.IN_ORDER,
}

KINDS = [
    f"--ring {ring} --indirect {indirect} --event-idx {event_idx}"
    for ring, indirect, event_idx in product(("split", "packed"), ("on", "off"), ("on", "off"))
]
KINDS += [f"{kind} --in-order on" for kind in KINDS]
KINDS += ["--ring split --queue-size 8 --indirect off", "--ring split --queue-size 32768"]
KINDS += ["--ring packed --queue-size 9 --indirect off", "--ring packed --queue-size 32768"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("daemon"), "--features", "packed=on,in-order=on") as daemon:
        yield daemon


@pytest.mark.parametrize("kind", KINDS)
def test_freed_memory_returns_over_every_kind_of_ring(kind: str, daemon: DaemonProcess) -> None:
    memory = ("--memory", "64M", "--reporter", "rotation", "--reporting-delay", "0.1", "--reporting-capacity", "8")
    work = ("--workload", f"memhog:size={SIZE},order=0,hold=0.2,repeat=2,rest=0.2", "--hold")
    options = kind.split()
    with ProgramProcess("guest", "--socket-path", str(daemon.socket_path), *memory, *work, *options) as guest:
        features = guest.events.wait("attached")["features"]
        assert has_feature(features, FeatureBit.RING_PACKED) is ("packed" in options)
        for option, value in zip(options[::2], options[1::2], strict=True):
            if option in FEATURES:
                assert has_feature(features, FEATURES[option]) is (value == "on")
        assert guest.events.wait("finished")["corrupted_pages"] == 0
        until(
            lambda: guest.events.wait_for_count("memory", 1)[-1]["resident_bytes"] <= SIZE // 4,
            "what was freed is back with the host",
        )
        assert guest.stop() == 0
        vm = daemon.events.wait_for_count("connected", 1, pid=guest.pid)[0]["vm"]
        assert daemon.settled(vm)["discarded_bytes"] >= SIZE
        assert max(event["entries"] for event in guest.events.all("report")) == 8  # so that tables are for something
        assert daemon.events.all("queue_stopped", vm=vm) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--queue-size 0", "a queue of 0 entries: there can be 1 to 32768"),
        ("--queue-size 32769 --ring packed", "a queue of 32769 entries: there can be 1 to 32768"),
        ("--queue-size 100", "a queue of 100 entries: the size of a split ring is a power of two"),
        ("--ring round", "argument --ring: invalid choice"),
        ("--indirect maybe", "argument --indirect: invalid choice"),
    ],
)
def test_rings_that_there_are_not(options: str, complaint: str) -> None:
    guest = ProgramProcess("guest", "--socket-path", "nowhere", "--memory", "16M", *options.split())
    try:
        assert guest.wait() == 2
        assert complaint in guest.stderr()
        assert guest.stderr().count("\n") == 1
    finally:
        guest.kill()
