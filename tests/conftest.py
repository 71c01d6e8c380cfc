"""What all tests share: fixed examples of Hypothesis, no deadlines that a busy machine misses, and the tiers.

The tiers are markers, given to each test file by what it uses:

* ``real_kernel``: boots a Linux kernel under User Mode Linux. Files say so themselves.
* ``processes``: starts processes. The file lies in ``end_to_end``, imports :mod:`subprocess`, a class of the test
  harness that starts one or the ``main`` of a tool that does, or says so itself.
* ``long``: takes several seconds of processor time.
* none of these: the quick tier. A test of it that starts a process fails.
"""

import gc
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from tests.harness import linux_guest, processes

settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("fixed"), max_examples=25)
settings.load_profile("fixed")

# Thousands of tests and syntax trees are live objects: the usual thresholds spend a third of the time looking at them.
gc.set_threshold(50_000, 50, 100)

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


_STARTS: Final = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system")
_may_start = True


def _refuse_processes(event: str, _arguments: tuple[object, ...]) -> None:
    if not _may_start and event in _STARTS:
        raise AssertionError(f"{event}: this test starts a process, so it has to be marked with `processes`")


sys.addaudithook(_refuse_processes)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let only tests that are marked so start processes."""
    global _may_start
    _may_start = any(item.iter_markers("processes")) or any(item.iter_markers("real_kernel"))
    try:
        return (yield)
    finally:
        _may_start = True
