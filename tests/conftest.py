"""What all tests share: fixed examples of Hypothesis, no deadlines that a busy machine misses, and the tiers.

The tiers are markers, given to each test file by what it uses:

* ``real_kernel``: boots a Linux kernel under User Mode Linux. Files say so themselves.
* ``processes``: starts processes: the file imports :mod:`subprocess`, a class of the test harness that starts one, or
  the ``main`` of a tool that does.
* ``long``: takes several seconds of processor time.
* none of these: the quick tier.
"""

import subprocess
from types import ModuleType
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from tests.harness import linux_guest, processes

settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fixed")

_FIRST: Final = ("test_demo.py", "linux/", "daemon/test_endurance.py")
"""Files that take longest. Workers that take one file after the other begin with them, so that all end together."""


def starts_processes(module: ModuleType) -> bool:
    """Return whether a test file starts processes, by what it imports."""
    names = vars(module).values()
    started_by = (processes.__name__, linux_guest.__name__)
    return any(
        value is subprocess
        or (isinstance(value, type) and value.__module__ in started_by and hasattr(value, "pid"))
        or (getattr(value, "__name__", "") == "main" and value.__module__.startswith("scripts."))
        for value in names
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, the slowest files first."""
    for item in items:
        assert isinstance(item, pytest.Function)
        in_folder = "end_to_end" in item.path.parts
        if in_folder or starts_processes(item.module):
            item.add_marker(pytest.mark.processes)
    items.sort(key=lambda item: next((n for n, name in enumerate(_FIRST) if name in item.nodeid), len(_FIRST)))
