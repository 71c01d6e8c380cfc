"""From results to the page: the data adds up, and no text of a run becomes markup."""

import json
import re
from html.parser import HTMLParser
from importlib.resources import files as resources
from typing import Any

import pytest

from protocol.memory import PAGE_SIZE
from protocol.units import MIB
from scripts.scenario.report.html_page import PAGE, SCRIPTS, STYLES, html_page, json_block
from scripts.scenario.report.page_data import event_text, map_rounds, page_data
from scripts.scenario.report.run_files import RunFiles
from scripts.scenario.report.sentence import what_happened
from scripts.scenario.report.series import chosen_machines
from tests.scripts.scenario.report.small_run import HOSTILE, write_small_run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    return RunFiles(write_small_run(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def data(files: RunFiles) -> dict[str, Any]:
    return page_data(files)


def test_machines_add_up_to_what_the_host_holds(data: dict[str, Any]) -> None:
    assert [vm["name"] for vm in data["vms"]] == [HOSTILE, "killed", "late"]
    for at, used in enumerate(data["host"]["used"]):
        assert sum(vm["resident"][at] for vm in data["vms"]) == used
    assert max(data["host"]["used"]) <= data["budget"] == 56 * MIB // PAGE_SIZE


def test_the_ledger_adds_up_at_the_chosen_moments(files: RunFiles, data: dict[str, Any]) -> None:
    rows = {(float(row["t"]), row["vm"]): int(row["not_returned_bytes"]) for row in files.ledger()}
    for vm in data["vms"]:
        for at, t in enumerate(data["times"]):
            booked = sum(values[at] for values in vm["causes"].values()) * PAGE_SIZE
            assert booked == rows.get((t, vm["name"]), 0)


def test_states_events_and_maps(data: dict[str, Any]) -> None:
    first, second, third = data["vms"]
    assert [state for _, state in second["states"]] == ["waiting", "running", "oom-killed"]
    assert [state for _, state in third["states"]] == ["waiting"]
    assert first["state"] == "finished"
    assert "oom_killed" in [name for _, name, vm, _ in data["events"] if vm == "killed"]
    assert first["maps"]["cell"] == 64 * MIB // PAGE_SIZE // 1024
    assert [row[0] for row in first["maps"]["rounds"]] == data["times"]
    assert third["maps"] is None


def test_a_thousand_machines_are_twelve_and_the_others() -> None:
    vms = {f"vm-{number}": {"state": "finished", "peak_bytes": number} for number in range(1000)}
    vms["vm-3"]["state"] = "oom-killed"
    assert chosen_machines(vms) == ["vm-3", *(f"vm-{number}" for number in range(989, 1000))]


def test_maps_of_a_real_kernel_have_the_hosts_side_alone() -> None:
    lines = [{"t": 1.0, "vm": "linux", "cell_bytes": MIB, "resident": "a4i4"}, {"t": 1.0, "vm": "other"}]
    assert map_rounds(lines, {"linux"}) == {
        "linux": {"cell": 256, "rounds": [[1.0, None, None, None, "a4i4", None, None]]}
    }


def test_the_text_of_an_event() -> None:
    event = {
        "t": 1.0,
        "event": "x",
        "vm": "a",
        "side": "host",
        "bytes": 3 * MIB,
        "discarded_bytes": MIB,
        "seconds": 0.25,
    }
    assert event_text(
        {**event, "name": "hold", "list": [1]}
    ) == "3.0 MiB, discarded 1.0 MiB, seconds 0.25, hold".replace("3.0 MiB", "bytes 3.0 MiB")
    assert len(event_text({"reason": "x" * 5000})) == 300


def test_the_sentence_says_how_it_went(files: RunFiles) -> None:
    text = what_happened(files.summary)
    assert text.startswith("3 machines on a host of 56.0 MiB, in virtual time, policy reporting: ")
    assert "killed was OOM-killed by the host, late was not started; the host held at most " in text
    interrupted = {**files.summary, "interrupted": True, "seconds": 3.0}
    assert what_happened(interrupted).endswith("The run was ended after 3.0 s of 12 s.")


class Markup(HTMLParser):
    """The elements of a page, and the text of each script and title."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1] in ("script", "title"):
            self.texts.append((self.elements[-1], data))


def test_no_text_of_a_run_becomes_markup(data: dict[str, Any]) -> None:
    page = html_page(data)
    markup = Markup()
    markup.feed(page)
    assert (markup.elements.count("script"), markup.elements.count("b")) == (2, 0)
    scripts = [text for tag, text in markup.texts if tag == "script"]
    assert json.loads(scripts[0]) == json.loads(json.dumps(data))
    assert ("title", data["title"]) in markup.texts
    assert f"<h1>{HOSTILE}" not in page
    assert set(markup.addresses) == {"#events", "data:,"}
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


def test_json_in_a_script_has_nothing_that_ends_it() -> None:
    block = json_block({"a": HOSTILE + "<!--"})
    assert not set("<>&\u2028") & set(block)
    assert json.loads(block) == {"a": HOSTILE + "<!--"}
    assert block.isascii()


def test_a_page_is_small(data: dict[str, Any]) -> None:
    assert len(html_page(data)) < 200_000


def test_parts_of_the_page_are_packaged() -> None:
    folder = resources(html_page.__module__.rpartition(".")[0]) / PAGE
    assert {path.name for path in folder.iterdir()} == {"page.html", *STYLES, *SCRIPTS}
