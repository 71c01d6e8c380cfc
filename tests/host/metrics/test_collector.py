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
from tests.host.control.fake_vm import INFO

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from host.metrics.collector import exposition

MIB = 1 << 20
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


def samples(guests: list[dict[str, Any]]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the value of each sample of a scrape, by name and labels without the prefix."""
    text = exposition(STATUS | {"vms": len(guests)}, "1.0", guests).decode()
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
    guests = [{"vm": 1, "name": "a"}, {"vm": 2, "name": "b"}, {"vm": 3, "name": "b"}, {"vm": 4, "name": ""}]
    assert domains(guests) == ["a", "b-2", "b-3", "vm-4"]


def test_notes_are_the_doctors() -> None:
    assert {cause.value for cause in finding.NOTES} == NOTES


def known_names() -> set[str]:
    """Return the names of all samples, and of those that the rules record."""
    text = exposition(STATUS, "1.0", entries()).decode()
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
