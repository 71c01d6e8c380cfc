"""What a keeper keeps, and how long it waits."""

import pytest

from host.service_manager import kept_descriptors
from host.service_manager.kept_descriptors import BACK_OFF_LONGEST, ENDS_FREE, LIVED, KeptDescriptors, Restarts


def test_descriptors_are_kept_in_order_and_forgotten_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_descriptors, "KEPT_MAX", 3)
    kept = KeptDescriptors()
    assert [kept.add(name, fd) for fd, name in enumerate(("a", "b", "a", "c"))] == [True, True, True, False]
    assert kept.all() == [("a", 0), ("a", 2), ("b", 1)]
    assert kept.remove("a") == [0, 2]
    assert kept.remove("a") == []
    assert len(kept) == 1
    assert kept.add("c", 3)


def test_daemon_that_ends_at_its_start_waits_longer_each_time() -> None:
    restarts = Restarts()
    waits = [restarts.after(0.1, was_ready=False) for _ in range(20)]
    assert waits[:ENDS_FREE] == [0.0] * ENDS_FREE
    assert waits[ENDS_FREE : ENDS_FREE + 3] == [0.2, 0.4, 0.8]
    assert waits[-1] == BACK_OFF_LONGEST
    assert restarts.after(LIVED, was_ready=True) == 0.0
    assert restarts.after(0.1, was_ready=False) == 0.0


def test_daemon_that_was_ready_is_started_again_at_once() -> None:
    restarts = Restarts()
    assert not any(restarts.after(0.1, was_ready=True) for _ in range(10 * ENDS_FREE - 1))
