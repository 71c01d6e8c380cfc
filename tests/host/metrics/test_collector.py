"""A scrape is read by the client library's own parser, and has what the control socket told."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from host.control.vm_facts import describe
from host.doctor import finding
from host.events.latency import BOUNDS, Latency
from host.inhibition.inhibition import Inhibition, Inhibitor
from host.metrics.names import NOTES, OTHERS, PREFIX, domains
from host.metrics.sample import read_sample, sample_of
from tests.host.control.fake_vm import INFO

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from host.metrics.collector import exposition
from host.metrics.latency_totals import LatencyTotals

MIB = 1 << 20
BUCKETS = len(BOUNDS) + 1
STATUS = {"vms": 2, "uptime": 7.5, "sessions": 9, "latency-bounds": list(BOUNDS), "worker-restarts": 4}
STATISTICS = {"memfree": 100, "memtot": 1000, "avail": 500, "caches": 300, "majflt": 7, "minflt": 8, "oom_kill": 1}
MONITORING = Path(__file__).resolve().parents[3] / "host" / "monitoring"


def latency(*seconds: float) -> Latency:
    """Return a latency that has counted these."""
    counted = Latency()
    for each in seconds:
        counted.count(each)
    return counted


def entries() -> list[dict[str, Any]]:
    """Return two guests, the second of which is inhibited and has a name of many characters."""
    busy = replace(INFO, statistics=STATISTICS | {"swap_in": 1, "swap_out": 2}, statistics_age=1.5)
    busy = replace(busy, discard=latency(0.0001, 0.02), acknowledge=latency(0.0002, 0.03))
    stopped = Inhibition(Inhibitor.OPERATOR, "a snapshot")
    kept = replace(INFO, name='a "b"\\c\nd', inhibition=stopped, keeps_pages="inhibited", discard=latency(9.0))
    return [describe(1, busy, 5 * MIB), describe(2, kept, None)]


def scrape(guests: list[dict[str, Any]], totals: LatencyTotals | None = None) -> str:
    """Return the text of a scrape, whose samples have come from a worker."""
    rows = json.loads(json.dumps([sample_of(guest) for guest in guests]))
    status = STATUS | {"vms": len(guests)}
    read = [sample for row in rows if (sample := read_sample(row, BUCKETS)) is not None]
    assert len(read) == len(guests)
    return exposition(status, "1.0", read, totals or LatencyTotals()).decode()


def samples(guests: list[dict[str, Any]]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the value of each sample of a scrape, by name and labels without the prefix."""
    text = scrape(guests)
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def test_scrape_has_what_was_told() -> None:
    found = samples(entries())
    qemu, other = ("domain", "qemu"), ("domain", 'a "b"\\c\nd')
    for key, value in {
        ("guests", ()): 2,
        ("sessions_total", ()): 9,
        ("worker_restarts_total", ()): 4,
        ("host_backed_bytes", (qemu,)): 5 * MIB,
        ("memory_unused_bytes", (qemu,)): 100,
        ("pgmajfault_total", (qemu,)): 7,
        ("reported_bytes_total", (qemu,)): 12 * MIB,
        ("discarded_bytes_total", (other,)): 8 * MIB,
        ("refused_bytes_total", (qemu, ("reason", "unaligned"))): MIB,
        ("healthy", (qemu,)): 1,
        ("healthy", (other,)): 0,
        ("health_cause", (("cause", "inhibited"), other)): 1,
        ("inhibited", (("by", "operator"), other)): 1,
        ("discard_seconds_count", ()): 3,
        ("discard_seconds_bucket", (("le", "0.0001"),)): 1,
        ("discard_seconds_bucket", (("le", "0.025"),)): 2,
        ("discard_seconds_bucket", (("le", "5.0"),)): 2,
        ("acknowledge_seconds_sum", ()): pytest.approx(0.0302),
    }.items():
        assert found[key] == value, key
    assert ("host_backed_bytes", (other,)) not in found
    assert ("memory_unused_bytes", (other,)) not in found


def test_scrape_without_guests() -> None:
    found = samples([])
    assert found["guests", ()] == 0
    assert found["discard_seconds_count", ()] == 0


def test_guests_of_one_name_are_told_apart() -> None:
    sample = sample_of(entries()[0])

    def labels(*names: str) -> list[str]:
        return domains([sample._replace(vm=vm, name=name) for vm, name in enumerate(names, 1)])

    assert labels("a", "b", "b", "") == ["a", "b-2", "b-3", "vm-4"]
    assert labels("vm-2", "", "", "vm-3-3") == ["vm-2", "vm-2-2", "vm-3", "vm-3-3"]
    assert labels("b", "b", "b-1", "b-2-2") == ["b-1-1", "b-2", "b-1", "b-2-2"]


def test_latencies_do_not_go_back_when_a_guest_goes() -> None:
    def of_discards(guests: list[dict[str, Any]]) -> tuple[float, float, float]:
        lines = dict(line.rsplit(" ", 1) for line in scrape(guests, totals).splitlines() if not line.startswith("#"))
        begin = f"{PREFIX}discard_seconds_"
        names = ("count", 'bucket{le="0.025"}', "sum")
        count, bucket, seconds = (float(lines[begin + name]) for name in names)
        return count, bucket, round(seconds, 6)

    totals = LatencyTotals()
    first, second = entries()
    assert of_discards([first, second]) == (3, 2, 9.0201)
    assert of_discards([first]) == (3, 2, 9.0201)
    third = describe(3, replace(INFO, discard=latency(0.01)), None)
    assert of_discards([first, third]) == (4, 3, 9.0301)
    assert of_discards([]) == (4, 3, 9.0301)
    assert of_discards([]) == (4, 3, 9.0301)


def test_guest_whose_worker_does_not_answer_is_not_healthy() -> None:
    sample = sample_of(entries()[0])
    assert (sample.is_healthy, list(sample.causes)) == (True, ["page-cache"])
    assert not sample._replace(is_served=False).is_healthy
    assert list(sample._replace(is_served=False).causes) == [finding.Cause.NOT_SERVED.value]


def test_label_that_another_guest_has_taken_is_not_given_twice() -> None:
    names = ("b-3", "b", "b", "", "vm-4", "b-3-3", "b-2", "b-2")
    first = sample_of(entries()[0])
    labels = domains([first._replace(vm=number, name=name) for number, name in enumerate(names, 1)])
    assert labels == ["b-3", "b-2", "b-3-3-3", "vm-4-4", "vm-4", "b-3-3", "b-2-7", "b-2-8"]


def test_notes_are_the_doctors() -> None:
    assert {cause.value for cause in finding.NOTES} == NOTES


def known_names() -> set[str]:
    """Return the names of all samples, and of those that the rules record."""
    text = scrape(entries())
    names = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    return names | {PREFIX + name for name in OTHERS}


def test_metrics_of_dashboard_and_rules_exist() -> None:
    rules = (MONITORING / "rules.yml").read_text()
    recorded = set(re.findall(r"record: (\S+)", rules))
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) >= 10
    used = set(re.findall(rf"(?<![:\w]){PREFIX}\w+", "\n".join((rules, *queries))))
    assert used - known_names() == set()
    used_records = {name for query in queries for name in re.findall(r"[a-z]+:\w+:\w+", query)}
    assert used_records <= recorded


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (0, "1"),
        (1, 1),
        (3, None),
        (4, []),
        (4, ["much"] * 99),
        (5, {"why": None}),
        (5, ["why"]),
        (6, [7]),
        (7, 7),
        (8, [[1], 0.5]),
        (9, [[0] * BUCKETS, "long"]),
        (9, [[0] * BUCKETS, float("inf")]),
        (9, [[True] * BUCKETS, 0]),
    ],
)
def test_what_a_worker_makes_up_is_no_sample(part: int, value: Any) -> None:
    row = json.loads(json.dumps(sample_of(entries()[0])))
    assert read_sample(row, BUCKETS) is not None
    row[part] = value
    assert read_sample(row, BUCKETS) is None
    assert read_sample(row[:part], BUCKETS) is None
