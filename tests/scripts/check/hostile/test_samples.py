"""Times of the good machine and of the control: figures, and what the machine explains."""

import os
import time
from pathlib import Path

import pytest

from scripts.check.hostile.processor_wait import ProcessorWait
from scripts.check.hostile.samples import Figures, Sample, SampleWriter, between, figures_of, read_samples, shared_with


def test_figures() -> None:
    samples = [Sample(float(number), number / 1000) for number in range(1, 102)]
    assert figures_of(samples) == Figures(101, 0.051, 0.1, 0.101)
    assert figures_of([]) == Figures()


def test_samples_are_read_while_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    writer = SampleWriter(path)
    writer.add(Sample(1.0, 0.25, 0.125, 0.5))
    writer.flush()
    with path.open("ab") as file:
        file.write(b"half of one")
    assert read_samples(path) == [Sample(1.0, 0.25, 0.125, 0.5)]
    writer.close()


def test_samples_of_a_period() -> None:
    samples = [Sample(float(number), 0.5) for number in range(10)]
    assert [one.at for one in between(samples, 2.0, 5.0)] == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("control", "shared"),
    [
        ([], 0.0),
        ([Sample(9.99, 0.0001), Sample(10.0, 0.001), Sample(10.02, 0.0019)], 0.0),  # the control was in time
        ([Sample(10.02, 0.03)], 0.03),
        ([Sample(9.95, 0.07)], 0.02),  # it began before
        ([Sample(10.08, 0.5)], 0.02),  # and went on after
        ([Sample(9.0, 3.0)], 0.1),
        ([Sample(10.0, 0.01), Sample(10.05, 0.02), Sample(10.2, 0.5)], 0.03),
    ],
)
def test_what_the_machine_explains(control: list[Sample], shared: float) -> None:
    assert shared_with(Sample(10.0, 0.1), control) == pytest.approx(shared)


def test_wait_for_a_processor_is_counted() -> None:
    wait = ProcessorWait(os.getpid())
    wait.begin()
    three, together = wait.seconds()
    assert 0 <= three <= together < 5
    stop = time.monotonic() + 0.05
    while time.monotonic() < stop:
        pass
    assert wait.seconds() >= (0, 0)
    wait.close()


def test_process_that_is_not_there_waits_for_nothing() -> None:
    wait = ProcessorWait(1 << 30)
    wait.begin()
    three, together = wait.seconds()
    assert 0 <= three <= together < 5
    wait.close()
