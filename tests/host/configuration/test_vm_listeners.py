"""Sockets that are added and removed while others go on."""

import asyncio
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from host.configuration.device_options import DEFAULT_DEVICE, DeviceOptions
from host.configuration.vm_listeners import VmListeners
from host.configuration.vm_socket import Mistakes, VmSocket
from protocol.process.listening_socket import SocketAccess


def at(path: Path, name: str, mode: int = 0o600) -> VmSocket:
    device = replace(DEFAULT_DEVICE, name=name)
    return VmSocket(path=path, device=device, access=SocketAccess(mode), place="vm[0]")


class Accepted:
    """What was accepted, by the name of its device."""

    def __init__(self) -> None:
        self.names: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, device: DeviceOptions, sock: socket.socket) -> None:
        sock.close()
        self.names.put_nowait(device.name)

    async def name_at(self, path: Path) -> str:
        """Return the name of the device at a path."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        return await self.names.get()


@pytest.mark.asyncio
async def test_change_adds_removes_and_leaves_the_rest(tmp_path: Path) -> None:
    stays, goes, comes = tmp_path / "stays", tmp_path / "goes", tmp_path / "comes"
    listeners, accepted = VmListeners([at(stays, "one"), at(goes, "two")]), Accepted()
    listeners.start(accepted)
    inode = stays.stat().st_ino
    added, removed, changed = listeners.change([at(comes, "three"), at(stays, "new", 0o660)])
    assert [[each.device.name for each in some] for some in (added, removed, changed)] == [["three"], ["two"], ["new"]]
    assert (stays.stat().st_ino, stays.stat().st_mode & 0o777, goes.exists()) == (inode, 0o660, False)
    assert [await accepted.name_at(path) for path in (stays, comes)] == ["new", "three"]
    assert listeners.change(listeners.sockets) == ([], [], [])
    listeners.stop()
    listeners.close()
    assert not stays.exists()
    assert not comes.exists()


@pytest.mark.asyncio
async def test_change_that_cannot_be_had_changes_nothing(tmp_path: Path) -> None:
    """A file is in the way of one socket, a folder is missing for another."""
    stays, file = tmp_path / "stays", tmp_path / "file"
    file.write_text("", encoding="ascii")
    listeners, accepted = VmListeners([at(stays, "one")]), Accepted()
    listeners.start(accepted)
    wanted = [at(tmp_path / "comes", "a"), at(file, "b"), at(tmp_path / "no" / "folder", "c"), at(stays, "new", 0o666)]
    with pytest.raises(Mistakes) as refused:
        listeners.change(wanted)
    assert str(refused.value).split("\n") == [
        f"vm[0].socket-path {file}: exists and is not a socket",
        f"vm[0].socket-path {tmp_path}/no/folder: No such file or directory",
    ]
    assert not (tmp_path / "comes").exists()
    assert stays.stat().st_mode & 0o777 == 0o600
    assert await accepted.name_at(stays) == "one"
    listeners.stop()
    listeners.close()


@pytest.mark.asyncio
async def test_socket_whose_file_has_gone_is_opened_anew(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    lost, other, stays = tmp_path / "dir" / "lost", tmp_path / "other", tmp_path / "stays"
    wanted = [at(lost, "lost"), at(other, "other"), at(stays, "stays")]
    listeners, accepted = VmListeners(wanted), Accepted()
    listeners.start(accepted)
    shutil.rmtree(lost.parent)
    other.unlink()
    other.write_text("a file of another program", encoding="ascii")
    with pytest.raises(Mistakes) as caught:
        listeners.change(wanted)
    assert [line.partition(": ")[2] for line in str(caught.value).split("\n")] == [
        "No such file or directory",
        "exists and is not a socket",
    ]
    assert other.exists()
    assert [each.device.name for each in listeners.sockets] == ["stays"]
    lost.parent.mkdir()
    other.unlink()
    added, removed, changed = listeners.change([at(lost, "lost", 0o660), *wanted[1:]])
    assert ([each.device.name for each in added], removed, changed) == (["lost", "other"], [], [])
    assert [await accepted.name_at(path) for path in (lost, other, stays)] == ["lost", "other", "stays"]
    listeners.stop()
    listeners.close()
