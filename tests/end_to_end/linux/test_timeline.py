"""The timeline of a real guest, a small one: memory comes back in every way that there is."""

import pytest

from scripts.laboratory import linux_run

pytestmark = [pytest.mark.real_kernel, pytest.mark.usefixtures("kernel_release")]


def test_small_timeline_of_a_real_kernel() -> None:
    told: list[str] = []
    outcome = linux_run.run(True, told.append)
    lines = {row[0]: row for row in outcome.tables[0].rows}
    size = 128
    given = {name: [int(cell) for cell in row[2:5]] for name, row in lines.items()}
    assert given["deleted: reports"][0] >= 0.8 * size
    assert given["deleted, balloon of 128.0 MiB"][1] == size
    assert given["deleted, reclaim"][2] >= 0.8 * size
    assert [lines[name][-1] for name in ("deleted, balloon of 128.0 MiB", "balloon emptied")] == ["128", "0"]
    assert told[0] == "idle"
