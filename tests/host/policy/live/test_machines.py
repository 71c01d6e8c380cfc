"""From the daemon's facts and the guest's statistics to what a policy sees."""

from typing import Any

from host.policy.live.machines import Machines, Statistics
from protocol.units import GIB, MIB


def facts(**fields: Any) -> dict[str, Any]:
    usual = {
        "vm": 1,
        "name": "web",
        "age": 12.5,
        "guest-memory": 4 * GIB,
        "host-backed": GIB,
        "balloon-actual": 2 * MIB,
        "balloon-requested": 3 * MIB,
    }
    return {**usual, **fields}


def test_view_has_facts_and_statistics() -> None:
    said = Statistics(
        {"memtot": 10, "memfree": 11, "avail": 12, "caches": 13, "majflt": 14, "minflt": 15, "swap_in": 16}, 100.0
    )
    view = Machines().view(("ctl", 1, 1), facts(), said, 103.0)
    assert (view.name, view.memory_bytes, view.balloon_bytes, view.target_bytes) == ("web", 4 * GIB, 2 * MIB, 3 * MIB)
    assert (view.total_bytes, view.free_bytes, view.available_bytes, view.cache_bytes) == (10, 11, 12, 13)
    assert (view.major_faults, view.minor_faults) == (14, 15)
    assert (view.swapped_in_bytes, view.swapped_out_bytes) == (16, None)
    assert (view.statistics_age, view.age, view.host_backed_bytes) == (3.0, 12.5, GIB)


def test_guest_that_says_nothing_is_unknown() -> None:
    view = Machines().view(("ctl", 1, 1), facts(), None, 0.0)
    assert (view.statistics_age, view.free_bytes, view.major_faults) == (None, None, None)


def test_balloon_beyond_the_memory_is_not_believed() -> None:
    assert Machines().view(("ctl", 1, 1), facts(**{"balloon-actual": 9 * GIB}), None, 0.0).balloon_bytes == 4 * GIB


def test_machines_of_one_name_are_told_apart_for_as_long_as_they_are_there() -> None:
    machines = Machines()
    keys = [("a", 1, 1), ("a", 1, 2), ("b", 1, 2), ("b", 2, 2)]
    names = [machines.name(key, "web") for key in keys]
    assert names == ["web", "web/2", "b/2", "b/2/2"]
    assert [machines.name(key, "web") for key in reversed(keys)] == names[::-1]
    machines.keep({keys[1]})
    assert machines.name(("c", 1, 9), "web") == "web"
    assert machines.name(keys[1], "web") == "web/2"


def test_memory_that_comes_back_is_counted_up_to_what_it_was() -> None:
    machines = Machines()

    def refaulted(backed: int | None) -> int:
        return machines.view(("a", 1, 1), facts(**{"host-backed": backed}), None, 0.0).refaulted_bytes

    # It grows, gives back, has a part again, grows beyond, gives back; the host does not say; has it all again.
    sizes = [100, 300, 120, 200, 500, 400, None, 450]
    assert [refaulted(size) for size in sizes] == [0, 0, 0, 80, 180, 180, 180, 230]
