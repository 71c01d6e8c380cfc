"""The daemon's requirements of a machine, checked before it starts."""

import os
import sys

import pytest

from host.command import check_machine
from protocol.errors import BalloonError


def test_machine_that_runs_the_tests_is_accepted() -> None:
    check_machine()


def test_interpreter_without_its_lock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    with pytest.raises(BalloonError, match="free-threaded"):
        check_machine()


def test_machine_without_proc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: not str(path).startswith("/proc") and exists(path))
    with pytest.raises(BalloonError, match=r"^/proc is not mounted"):
        check_machine()
