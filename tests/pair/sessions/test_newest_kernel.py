"""What Linux 7.2 does with the device: it asks for more queues than it uses."""

import pytest

from host.balloon.offered_features import OFFERED
from host.vhost_user.queue_numbers import CHOICES
from protocol.virtio import FeatureBit, feature_mask
from protocol.virtio_balloon import BalloonFeature, BalloonQueue
from tests.pair.session import Shell
from tests.pair.sessions.newest_kernel import NewestKernel

OFFERS = {
    "default": OFFERED,
    "no statistics": OFFERED & ~feature_mask(BalloonFeature.STATS_VQ),
    "no optional queue": OFFERED & ~feature_mask(BalloonFeature.STATS_VQ, BalloonFeature.PAGE_REPORTING),
    "every queue": OFFERED | feature_mask(BalloonFeature.FREE_PAGE_HINT),
    "packed": OFFERED | feature_mask(FeatureBit.RING_PACKED),
}


def running(shell: Shell) -> dict[int, BalloonQueue | None]:
    return {index: start.queue for index, start in shell.running.items()}


@pytest.mark.parametrize("ring_size", [2, 16, 32, 256])
@pytest.mark.parametrize("offered", OFFERS.values(), ids=OFFERS.keys())
def test_driver_that_asks_for_five_queues_and_names_some_is_served(offered: int, ring_size: int) -> None:
    shell = Shell(offered)
    kernel = NewestKernel(shell, ring_size=ring_size)
    kernel.connect()
    queues = kernel.probe()
    assert running(shell) == queues
    assert {start.place.size for start in shell.running.values()} == {ring_size}
    assert not any(start.features.indirect_desc for start in shell.running.values())
    assert not [line for line in shell.done if line.startswith(("queue_stopped", "message_refused"))]


@pytest.mark.parametrize("choice", CHOICES)
def test_number_of_queues_does_not_depend_on_how_they_are_numbered(choice: str) -> None:
    shell = Shell(OFFERED | feature_mask(BalloonFeature.FREE_PAGE_HINT), choice)
    kernel = NewestKernel(shell)
    kernel.connect()
    queues = kernel.probe()
    assert running(shell) == queues


def test_driver_is_removed_and_probed_again() -> None:
    shell = Shell()
    kernel = NewestKernel(shell)
    kernel.connect()
    kernel.probe()
    kernel.remove()
    assert not shell.running
    queues = kernel.probe()
    assert running(shell) == queues
    assert all(start.base == 0 and not start.resumes for start in shell.running.values())
