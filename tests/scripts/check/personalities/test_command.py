"""``balloon-check personalities``: what is seen of our daemon under each name, and the table."""

import argparse
import json
import shutil
from pathlib import Path

import pytest

from host.balloon.personality import PERSONALITIES
from protocol.process.command_line import Parser
from scripts.check.personalities.command import QEMU, run, table_lines
from scripts.check.personalities.observations import OBSERVATIONS
from scripts.check.personalities.options import add_to


def arguments(*words: str) -> argparse.Namespace:
    parser = Parser(prog="balloon-check personalities", description="", epilog="")
    add_to(parser)
    return parser.parse_args(words)


SEEN: dict[str, list[str | None]] = {  # qemu, firecracker, cloud-hypervisor, libkrun, text
    "offers": ["statistics, page-poison, page-reporting", None, "deflate-on-oom, page-reporting", None, None],
    "reporting queue, all accepted": ["3", "3", "2", "4", "4"],
    "reporting queue, statistics and hinting declined": ["3", "3", "2", "4", "4"],
    "both offered as well: hinting declined": ["4", "4", "4", "4", "4"],
    "used length of a report of 1, 3 pages": ["0, 0", "0, 0", "4096, 12288", "0, 0", "0, 0"],
    "report in a readable descriptor": ["kept", "1 page gone", "1 page gone", "1 page gone", "kept"],
    "report from an address + 512": ["kept", "kept", "1 page gone, 2 partly zeroed", "kept", "kept"],
    "report of 4196 bytes": ["kept", "2 pages gone", "1 page gone, 1 partly zeroed", "2 pages gone", "kept"],
    "report of no bytes, and of a page": ["not given back", *["1 page gone"] * 4],
    "report of the last 2 pages and 1 beyond the end": ["2 pages gone", "kept", "2 pages gone", "kept", "kept"],
    "report of 1 page outside of memory, and of a page": [*["1 page gone"] * 3, "not given back", "1 page gone"],
    "report of 2 pages outside of memory, and of a page": [
        "not given back",
        "1 page gone",
        "1 page gone",
        "not given back",
        "1 page gone",
    ],
    "report of the queue's own ring": ["kept"] * 5,
    "num_pages written by the driver": ["ignored", "taken", "ignored", "ignored", "ignored"],
    "poison_val written by the driver": ["taken", *["ignored"] * 4],
    "all offered: bytes of configuration that take a value": ["16", "12", "8", "16", "16"],
    "report with a pattern": ["kept", *["not offered"] * 4],
    "inflating with a pattern": ["1 page gone", *["not offered"] * 4],
    "inflating": [*["1 page gone"] * 3, "not given back", "1 page gone"],
}


@pytest.mark.processes
def test_personalities_differ_as_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["qemu", "firecracker", "cloud-hypervisor", "libkrun", "text"]
    file = tmp_path / "table.json"
    options = [word for name in names for word in ("--personality", name)]
    assert run(arguments(*options, "--json", str(file))) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["columns"] == names
    assert list(found["sources"]) == names
    rows = {row["observation"]: row["seen"] for row in found["rows"]}
    assert list(rows) == [observation.name for observation in OBSERVATIONS]
    for observation, expected in SEEN.items():
        for name, value in zip(names, expected, strict=True):
            assert value in (None, rows[observation][name]), (observation, name, rows[observation][name])
    printed = capsys.readouterr().out
    assert all(name.partition("-")[0] in printed for name in names)  # a long one is broken at its dash


@pytest.mark.parametrize("width", [140, 200])
def test_cells_are_wrapped_so_that_the_table_fits(width: int) -> None:
    names = list(PERSONALITIES)
    label = "an observation with a long name of its own"
    table = {label: {name: f"what {name} did about it" for name in names}}
    lines = list(table_lines(names, table, width))
    assert max(map(len, lines)) <= width
    assert " ".join(line[:30].strip() for line in lines if not line.startswith("-")).split() == label.split()
    column = (width - 30) // len(names) - 2
    for number, name in enumerate(names):
        at = 30 + number * (column + 2) + 2
        words = " ".join(line[at : at + column] for line in lines if not line.startswith("-")).split()
        assert "".join(words) == "".join(f"{name}what {name} did about it".split())


def test_columns_that_find_no_room_follow_below() -> None:
    names = list(PERSONALITIES)
    lines = list(table_lines(names, {"seen": dict.fromkeys(names, "much"), "heard": dict.fromkeys(names, "-")}, 80))
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines if line.startswith("seen")] == [
        ["seen", *["much"] * 3],
        ["seen", *["much"] * 3],
        ["seen", "much"],
    ]


def test_unknown_personality_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments("--personality", "bhyve")
    assert ended.value.code == 2
    assert "invalid choice: 'bhyve'" in capsys.readouterr().err


SAFER = "report of the queue's own ring"
"""Where the personality differs from QEMU, which discards the page: no personality discards a ring."""


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")
def test_personality_of_qemu_is_as_qemu_itself(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    assert run(arguments("--personality", "qemu", "--qemu", "--json", str(file))) == 0
    rows = {row["observation"]: row["seen"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    assert rows.pop(SAFER) == {"qemu": "kept", QEMU: "ring gone"}
    # QEMU is started with every feature on, so its first rows are those of the daemon that offers all queues.
    plain = ["offers", "reporting queue, all accepted", "reporting queue, statistics and hinting declined"]
    for observation in plain:
        del rows[observation]
    assert [(observation, seen) for observation, seen in rows.items() if seen["qemu"] != seen[QEMU]] == []
