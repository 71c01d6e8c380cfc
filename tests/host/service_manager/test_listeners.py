"""Sockets that a manager keeps: each by its path, found again, and closed when they are asked for no longer."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.service_manager.listeners import Listeners, kept_name
from host.service_manager.notification import is_fd_name
from protocol.process.listening_socket import BY_UMASK, ListeningSocket, SocketAccess
from tests.harness.descriptor_store import DescriptorStore


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[DescriptorStore]:
    """A manager."""
    with contextlib.closing(DescriptorStore(tmp_path / "notify")) as manager:
        yield manager


def next_listeners(manager: DescriptorStore) -> Listeners:
    """Return those of the next daemon."""
    return Listeners(manager.side, manager.hand_over())


def open_at(listeners: Listeners, *paths: Path) -> list[ListeningSocket]:
    """Return what listens at these paths, which is kept."""
    sockets = [listeners.listen_at(path, "--vm[0]", BY_UMASK) for path in paths]
    listeners.keep()
    listeners.close_others()
    return sockets


def test_name_is_one_that_descriptors_may_have(tmp_path: Path) -> None:
    assert kept_name(Path("/run/a b:c/ü")) == "listener./run/a%20b%3Ac/%C3%BC"
    names = [kept_name(Path("/" + "ü" * 50 + end)) for end in ("a", "b")]
    assert all(map(is_fd_name, names))
    assert names[0] != names[1]
    assert kept_name(Path("a")) == kept_name(Path.cwd() / "a")


def test_sockets_go_on_and_those_that_are_asked_for_no_longer_go(tmp_path: Path, manager: DescriptorStore) -> None:
    stays, goes, comes = tmp_path / "stays", tmp_path / "goes", tmp_path / "comes"
    first = next_listeners(manager)
    sockets = open_at(first, stays, goes)
    assert manager.hear() == [f"+{kept_name(stays)}", f"+{kept_name(goes)}"]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(stays))  # it waits for the next daemon
        first.let_go()
        for each in sockets:
            each.close()
        second = next_listeners(manager)
        sockets = open_at(second, stays, comes)
        sockets[0].socket.setblocking(False)
        sockets[0].socket.accept()[0].close()
    assert manager.hear() == [f"+{kept_name(comes)}", f"-{kept_name(goes)}"]
    assert (stays.is_socket(), comes.is_socket(), goes.exists()) == (True, True, False)
    sockets[1].close()
    assert manager.hear() == [f"-{kept_name(comes)}"]
    late = second.listen_at(goes, "--config", BY_UMASK)
    assert manager.hear() == [f"+{kept_name(goes)}"]
    second.forget()
    assert sorted(manager.hear()) == [f"-{kept_name(path)}" for path in (goes, stays)]
    for each in (sockets[0], late):
        each.close()
    assert manager.hear() == []
    assert not list(tmp_path.glob("*s*"))


def test_access_that_is_stated_holds_for_a_socket_that_was_kept(tmp_path: Path, manager: DescriptorStore) -> None:
    path = tmp_path / "guests"
    first = next_listeners(manager)
    (made,) = open_at(first, path)
    path.chmod(0o604)
    first.let_go()
    made.close()
    second = next_listeners(manager)
    (adopted,) = open_at(second, path)
    assert path.stat().st_mode & 0o777 == 0o604
    adopted.give(SocketAccess(0o640))
    adopted.give(BY_UMASK)
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o777 & ~umask
    second.let_go()
    adopted.close()
    third = next_listeners(manager)
    last = third.listen_at(path, "--vm[0]", SocketAccess(0o600))
    assert path.stat().st_mode & 0o777 == 0o600
    assert manager.hear() == [f"+{kept_name(path)}"]  # of the first
    last.close()
    assert manager.hear() == [f"-{kept_name(path)}"]
    assert not path.exists()
