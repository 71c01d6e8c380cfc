"""The benchmark tool: its arithmetic, its tables, and that a measurement really runs. No test here judges a time."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.mm.page_alloc import PageAllocator
from guest.mm.reporting.reporters import REPORTERS, make_reporter
from guest.ram import GuestRam
from host.memory.discard import punch_hole
from protocol.errors import UsageError
from protocol.memory import PAGE_SIZE
from protocol.units import GIB, MIB
from scripts.benchmarks import bare_loop, memory_manager, table
from scripts.benchmarks.__main__ import main
from scripts.benchmarks.bare_loop import BareLoop
from scripts.benchmarks.figures import (
    QUICK,
    Bench,
    BenchmarkError,
    Figure,
    Result,
    median_ratio,
    median_uncertainty,
    percentile,
)
from scripts.benchmarks.idle import wake_ups
from scripts.benchmarks.latency import within
from scripts.benchmarks.memory_manager import (
    EmptyCalls,
    armed_seconds,
    fragmented_zone,
    report_all,
    run_pairs,
    run_replacements,
    slower_by,
    walked_per_block,
)
from scripts.benchmarks.registry import FIGURES, choose
from scripts.benchmarks.rig import Daemon, Machine

AT_LEAST = Figure(name="rate", title="a rate", unit="of bare rate", bar=0.95, at_least=True)
AT_MOST = Figure(name="wait", title="a wait", unit="us", bar=250, at_least=False)

# -- arithmetic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("percent", "expected"), [(0.1, 1), (50, 50), (99, 99), (99.1, 100), (100, 100)], ids=lambda value: str(value)
)
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == expected


@pytest.mark.parametrize(("samples", "percent"), [([], 50.0), ([1.0], 0.0), ([1.0], 100.5)])
def test_percentile_of_nothing_is_refused(samples: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(samples, percent)


def test_disturbed_round_does_not_move_the_ratio() -> None:
    assert median_ratio([1.0, 1.0, 9.0], [2.0, 2.0, 2.0]) == 0.5


def test_rounds_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        median_ratio([1.0, 2.0], [1.0])


def test_median_is_as_certain_as_the_samples_around_it() -> None:
    samples = [float(n) for n in range(100)]
    assert median_uncertainty(samples) == 10.5  # ranks 40 to 60
    assert median_uncertainty([*samples[:60], *[1e6] * 40]) == 1e6 - 49.5
    assert median_uncertainty([5.0] * 100) == 0
    assert median_uncertainty([1.0, 2.0]) == 0.5


def test_slowness_is_the_per_cent_of_the_middle_pair() -> None:
    assert slower_by([5.0, 5.0, 4.0, 99.0], [4.0, 4.0, 4.0, 4.0]) == 25
    assert slower_by([3.0], [4.0]) == -25


def test_samples_count_wholly_inside_a_busy_span() -> None:
    busy = [(1.0, 2.0), (3.0, 4.0)]
    samples = [(0.5, 0.75), (0.75, 1.25), (1.25, 1.5), (1.5, 2.0), (1.75, 2.25), (2.5, 2.75), (3.0, 3.125), (3.5, 5.0)]
    assert within(samples, busy) == [0.25, 0.5, 0.125]


def test_samples_without_a_busy_span_do_not_count() -> None:
    assert within([(1.0, 2.0)], []) == []


def test_thread_that_has_ended_woke_up_and_a_new_one_counts_from_its_beginning() -> None:
    assert wake_ups({"1": 5, "2": 7}, {"1": 6, "3": 4}) == 1 + 1 + 4
    assert wake_ups({"1": 5}, {"1": 5}) == 0


# -- figures and tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "value", "met"),
    [(AT_LEAST, 0.95, True), (AT_LEAST, 0.949, False), (AT_MOST, 250, True), (AT_MOST, 250.1, False)],
)
def test_bar_is_met_up_to_its_own_value(figure: Figure, value: float, met: bool) -> None:
    assert Result(figure=figure, value=value, reference="").met is met


@pytest.mark.parametrize(("figure", "value"), [(AT_LEAST, 0.94), (AT_MOST, 250.01)])
def test_bar_is_met_within_what_the_measurement_can_tell(figure: Figure, value: float) -> None:
    assert Result(figure=figure, value=value, reference="", uncertainty=0.01).met
    assert not Result(figure=figure, value=value, reference="", uncertainty=0.001).met


def test_bars_say_their_direction() -> None:
    assert (AT_LEAST.bar_text, AT_MOST.bar_text) == (">= 0.95", "<= 250")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0, "0"), (0.9512, "0.951"), (12.34, "12.3"), (234.56, "234.6"), (80.0, "80")]
)
def test_values_have_three_digits_or_more(value: float, text: str) -> None:
    assert table.format_value(value) == text


def test_rows_stand_under_their_headings() -> None:
    row = table.row(Result(figure=AT_LEAST, value=0.5, reference="bare loop"))
    header = table.header()
    for heading, cell in (("figure", "rate"), ("unit", "of bare rate"), ("bar", ">= 0.95"), ("met", "NO")):
        assert row.startswith(cell, header.index(heading)), heading
    assert row.endswith("bare loop")


def test_last_line_counts_and_names_what_is_missed() -> None:
    good, bad = Result(figure=AT_MOST, value=1, reference=""), Result(figure=AT_LEAST, value=0, reference="")
    assert table.summary([good]) == "1 of 1 bars met"
    assert table.summary([good, bad], judged=False).startswith("2 figures ran. Nothing was judged")
    assert table.row(bad, judged=False).split() == table.row(bad).replace("NO", "-").split()
    assert json.loads(table.as_json([bad], judged=False))["results"][0]["met"] is None
    assert table.summary([good, bad]) == "1 of 2 bars met; not met: rate"


def test_json_has_the_promised_form() -> None:
    results = json.loads(table.as_json([Result(figure=AT_MOST, value=133.5, reference="the bare calls 60 us")]))
    assert results == {
        "results": [
            {
                "name": "wait",
                "value": 133.5,
                "uncertainty": 0.0,
                "unit": "us",
                "reference": "the bare calls 60 us",
                "bar": "<= 250",
                "met": True,
            }
        ]
    }


def test_names_are_unique_and_short_enough_for_the_table() -> None:
    names = [figure.name for figure in FIGURES]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= table.header().index("measured") - 2


# -- the command line --------------------------------------------------------------------------------------------------


def test_figures_are_chosen_in_the_order_of_the_table() -> None:
    assert choose([]) == FIGURES
    assert [figure.name for figure in choose(["guest-boot", "discard-2m"])] == ["discard-2m", "guest-boot"]


def test_unknown_figure_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'warp'.*discard-2m"):
        choose(["warp"])


def test_usage_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["warp"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("balloon-bench: ")
    assert captured.err.count("\n") == 1


def test_path_that_cannot_be_written_is_found_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["discard-2m", "--json", str(tmp_path / "missing" / "results.json")]) == 1
    assert "No such file" in capsys.readouterr().err


def test_list_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [figure.name for figure in FIGURES]


# -- the memory manager ------------------------------------------------------------------------------------------------

ZONE_PAGES = 64 * MIB // PAGE_SIZE


@pytest.mark.parametrize("nr_cpus", [0, 1])
def test_pairs_leave_memory_as_it_was(nr_cpus: int) -> None:
    allocator = PageAllocator(ZONE_PAGES, nr_cpus=nr_cpus)
    run_pairs(allocator, 100)
    allocator.validate()
    assert allocator.nr_free_pages() + allocator.nr_pcp_pages() == ZONE_PAGES
    assert (allocator.nr_pcp_pages() > 0) == bool(nr_cpus)


def test_fragmented_zone_is_half_full_of_single_pages_and_stays_so() -> None:
    allocator, held = fragmented_zone(ZONE_PAGES)
    before = sorted(held)
    assert len(set(held)) == len(held) == ZONE_PAGES // 2
    assert allocator.zones[0].nr_free[0] > ZONE_PAGES // 16
    run_replacements(allocator, held, [0, 5, 5, len(held) - 1])
    allocator.validate()
    assert len(set(held)) == len(held)
    assert allocator.nr_free_pages() == ZONE_PAGES // 2
    assert sum(pfn not in held for pfn in before) <= 3


def test_fragmented_zone_is_the_same_each_time() -> None:
    assert fragmented_zone(ZONE_PAGES)[1] == fragmented_zone(ZONE_PAGES)[1]


def test_loops_run_over_nothing() -> None:
    assert run_pairs(EmptyCalls(), 10) >= 0
    assert run_replacements(EmptyCalls(), [7, 8], [0, 1, 1]) >= 0


@pytest.mark.parametrize("name", REPORTERS)
def test_loop_is_timed_while_the_reporter_is_idle(name: str) -> None:
    reporter = make_reporter(name, PageAllocator(4 * ZONE_PAGES))
    seen: list[tuple[bool, float | None]] = []

    def loop() -> float:
        seen.append((reporter.registered, reporter.due))
        return 0.5

    assert [armed_seconds(reporter, loop, armed=armed) for armed in (True, False, True)] == [0.5] * 3
    assert seen == [(True, None), (False, None), (True, None)]
    assert not reporter.registered
    assert reporter.reported_pages() > 0


def test_loop_that_wakes_the_reporter_is_refused() -> None:
    allocator = PageAllocator(ZONE_PAGES)
    reporter = make_reporter("rotation", allocator)

    def loop() -> float:
        pfn = allocator.alloc_pages(9)
        assert pfn is not None
        allocator.free_pages(pfn, 9)
        return 0.5

    with pytest.raises(BenchmarkError, match="was to be idle"):
        armed_seconds(reporter, loop, armed=True)
    assert not reporter.registered


@pytest.mark.parametrize("name", REPORTERS)
def test_device_that_acknowledges_is_told_of_nearly_all(name: str) -> None:
    reporter = make_reporter(name, PageAllocator(GIB // PAGE_SIZE))
    report_all(reporter)
    assert reporter.due is None
    assert reporter.reported_pages() > 0.9 * reporter.allocator.total_pages


def test_walk_grows_with_memory_for_scan_alone() -> None:
    assert walked_per_block("boundary", 2 * GIB) < 1.1 * walked_per_block("boundary", GIB)
    assert walked_per_block("scan", 2 * GIB) > 1.5 * walked_per_block("scan", GIB)


def test_memory_too_small_to_report_is_not_measured() -> None:
    with pytest.raises(BenchmarkError, match="nothing to report"):
        walked_per_block("boundary", MIB)


def test_figures_of_the_memory_manager_are_measured(tmp_path: Path) -> None:
    shown: list[str] = []
    bench = Bench(scale=QUICK, directory=tmp_path, bare_loop=(), bare_language="none", progress=shown.append)
    for benchmark in memory_manager.BENCHMARKS:
        results = list(benchmark.measure(bench))
        assert tuple(result.figure for result in results) == benchmark.figures
        assert all(result.reference for result in results)
        assert all(text.startswith(benchmark.figures[0].name) for text in shown)
        shown.clear()


# -- the real thing, as little of it as there can be -------------------------------------------------------------------


@pytest.fixture
def touched() -> Iterator[GuestRam]:
    """Memory of 4 MiB, all of it in use."""
    ram = GuestRam(4 * MIB)
    ram.fill(0, ram.size // PAGE_SIZE, 1)
    yield ram
    ram.close()


@pytest.mark.parametrize("with_compiler", [True, False])
def test_bare_loop_discards_what_it_is_told(
    with_compiler: bool, touched: GuestRam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_compiler:
        monkeypatch.setenv("PATH", str(tmp_path))
    command, language = bare_loop.prepare(tmp_path)
    assert with_compiler or language == "Python"
    with BareLoop(command, touched.fd) as loop:
        assert loop.punch(MIB, MIB, 2) > 0
        assert touched.resident_bytes == 2 * MIB


def test_machine_gives_its_memory_back_through_the_daemon(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, Machine(daemon.socket_path, 4 * MIB) as machine:
        machine.touch()
        assert machine.ram.resident_bytes >= 4 * MIB
        begin, end = machine.report([(0, MIB), (2 * MIB, MIB)])
        assert begin < end
        resident = machine.ram.resident_bytes
        assert punch_hole(machine.ram.fd, 0, MIB) == 0
        assert machine.ram.resident_bytes == resident
        assert machine.report_all(MIB, 4) > 0


def test_figure_is_measured_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results.json"
    assert main(["round-trip", "--quick", "--json", str(path)]) == 0
    (result,) = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert (result["name"], result["unit"], result["bar"]) == ("round-trip", "us", "<= 250")
    assert result["value"] > 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("round-trip ") for line in lines)
    assert lines[-1].startswith("1 figures ran. Nothing was judged")
