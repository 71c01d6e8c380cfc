"""Fixtures that several tests of the emulated guest share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.vhost_user.fake_backend import Guest
from tests.harness.processes import open_fds


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """Memory with rings; when the test is over, no file descriptor may have been added, no view be in use."""
    before = open_fds(os.getpid()).keys()
    guest = Guest(tmp_path / "socket")
    yield guest
    guest.ram.close()
    assert open_fds(os.getpid()).keys() <= before
