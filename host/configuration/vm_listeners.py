"""The sockets that the daemon listens on: opened together, and changed together while it runs."""

import contextlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from host.configuration.device_options import DeviceOptions
from host.configuration.vm_socket import Gathered, VmSocket
from protocol.errors import BalloonError
from protocol.process.accept_loop import AcceptLoop
from protocol.process.listening_socket import ListeningSocket, SocketAccess

OnAccept = Callable[[DeviceOptions, socket.socket], None]
Listen = Callable[[Path, str, SocketAccess], ListeningSocket]


class _Listening:
    """One socket, which accepts between :meth:`start` and :meth:`stop`."""

    def __init__(self, wanted: VmSocket, listen: Listen) -> None:
        self.wanted = wanted
        self.listener = listen(wanted.path, wanted.option, wanted.access)
        self._accepting: AcceptLoop | None = None

    def start(self, on_accept: OnAccept) -> None:
        self._accepting = AcceptLoop(
            self.listener.socket, "a virtual machine", lambda sock: on_accept(self.wanted.device, sock)
        )
        self._accepting.start()

    def stop(self) -> None:
        if self._accepting is not None:
            self._accepting.stop()
            self._accepting = None

    def give(self, access: SocketAccess) -> None:
        try:
            self.listener.give(access)
        except OSError as error:
            raise BalloonError(f"{self.wanted.option} {self.wanted.path}: {error.strerror}") from error

    def restore(self, access: SocketAccess) -> None:
        with contextlib.suppress(BalloonError):
            self.give(access)


class VmListeners:
    """Listens on sockets from the beginning, accepts from :meth:`start` to :meth:`stop`.

    ``on_accept`` gets each connection, which it then owns, and the device that was asked for.
    """

    def __init__(self, wanted: Sequence[VmSocket], listen: Listen = ListeningSocket) -> None:
        """Open them all by ``listen``, which later ones are opened by too.

        Raises:
            BalloonError: the first that cannot be opened.
        """
        self._listen = listen
        self._open: dict[Path, _Listening] = {}
        self._on_accept: OnAccept | None = None
        with contextlib.ExitStack() as undo:
            for each in wanted:
                self._open[each.path.absolute()] = listening = _Listening(each, listen)
                undo.callback(listening.listener.close)
            undo.pop_all()

    @property
    def sockets(self) -> list[VmSocket]:
        """What there is at present."""
        return [listening.wanted for listening in self._open.values()]

    def start(self, on_accept: OnAccept) -> None:
        """Accept from now on."""
        self._on_accept = on_accept
        for listening in self._open.values():
            listening.start(on_accept)

    def change(self, wanted: Sequence[VmSocket]) -> tuple[list[VmSocket], list[VmSocket], list[VmSocket]]:
        """Listen on ``wanted`` and on no other; return what was added, removed and changed.

        Sockets that stay are not touched but for the permissions of their files. One whose file has gone, with which
        guests could connect no more, is opened anew: it is one of those that were added. Sessions go on, with the
        device that they have begun with.

        Raises:
            Mistakes: sockets that cannot be had, a line for each; all is as before then, without those that had gone.
        """
        asked = {each.path.absolute(): each for each in wanted}
        for path in [path for path in asked.keys() & self._open.keys() if self._open[path].listener.has_lost_file]:
            self._remove(path)
        mistakes, undo = Gathered(), contextlib.ExitStack()
        added: dict[Path, _Listening] = {}
        changed = [each for path, each in asked.items() if path in self._open and self._open[path].wanted != each]
        for path, each in asked.items():
            if path not in self._open and (listening := self._try(each, mistakes)) is not None:
                added[path] = listening
                undo.callback(listening.listener.close)
        for each in changed:
            self._give(self._open[each.path.absolute()], each, mistakes, undo)
        with undo:
            mistakes.check()
            undo.pop_all()
        removed = [self._remove(path) for path in self._open.keys() - asked.keys()]
        for path, each in asked.items():
            if path in self._open:
                self._open[path].wanted = each
        self._open.update(added)
        for listening in added.values():
            if self._on_accept is not None:
                listening.start(self._on_accept)
        return [listening.wanted for listening in added.values()], removed, changed

    def _try(self, wanted: VmSocket, mistakes: Gathered) -> _Listening | None:
        try:
            return _Listening(wanted, self._listen)
        except BalloonError as error:
            mistakes.add(error)
        except OSError as error:  # no descriptor is left
            mistakes.add(f"{wanted.option} {wanted.path}: {error.strerror}")
        return None

    def _give(self, listening: _Listening, wanted: VmSocket, mistakes: Gathered, undo: contextlib.ExitStack) -> None:
        before = listening.wanted.access
        if wanted.access == before:
            return
        try:
            listening.give(wanted.access)
        except BalloonError as error:
            mistakes.add(error)
        undo.callback(listening.restore, before)

    def _remove(self, path: Path) -> VmSocket:
        listening = self._open.pop(path)
        listening.stop()
        listening.listener.close()
        return listening.wanted

    def stop(self) -> None:
        """Accept no more, on the event loop."""
        self._on_accept = None
        for listening in self._open.values():
            listening.stop()

    def close(self) -> None:
        """Remove the sockets; on any thread, once more without an effect."""
        for listening in list(self._open.values()):
            listening.listener.close()
