"""Bytes between the launcher's standard streams and the guest's consoles, one thread a direction.

Threads, because a reader of our output that stalls, or an input that never ends, must not delay the other streams, and
because epoll does not support regular files.
"""

import contextlib
import fcntl
import os
import pty
import select
import selectors
import signal
import struct
import termios
import threading
import time
import tty
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from guest.linux.kernel_command_line import Consoles

_CHUNK = 1 << 16
_POLL_MILLISECONDS = 200


def occupy_standard_descriptors() -> None:
    """Open ``/dev/null`` as whichever of 0, 1 and 2 is closed, so that no pipe of ours gets one of these numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def is_terminal(descriptor: int) -> bool:
    """Tell whether the descriptor is a terminal; a closed one is not."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


class OutputPump(threading.Thread):
    """Copies from a pipe or pseudo terminal of the guest to one of our standard streams, until the guest closes it.

    When our stream has no reader any more, ``on_broken`` is called once, from this thread, and the rest is dropped.
    """

    def __init__(self, source: int, sink: int, on_broken: Callable[[], None]) -> None:
        super().__init__(name=f"output-{sink}", daemon=True)
        self._source = source
        self._sink = sink
        self._on_broken = on_broken
        self._ending = threading.Event()

    def run(self) -> None:
        broken = False
        while not self._ending.is_set():
            try:
                data = os.read(self._source, _CHUNK)
            except BlockingIOError:  # a pseudo terminal, whose other user is an input pump
                poll(self._source, select.POLLIN)
                continue
            except OSError:  # EIO: the other end of a pseudo terminal was closed
                return
            if not data:
                return
            if not broken and not self._write(data):
                broken = True
                self._on_broken()

    def _write(self, data: bytes) -> bool:
        view = memoryview(data)
        while view and not self._ending.is_set():
            try:
                view = view[os.write(self._sink, view) :]
            except BlockingIOError:  # another process made our standard stream non-blocking
                poll(self._sink, select.POLLOUT)
            except OSError:
                return False
        return True

    def stop(self) -> None:
        """Drop the unwritten rest. The guest must be gone, else a read would not return."""
        self._ending.set()


class InputPump(threading.Thread):
    """Copies one of our standard streams to a console of the guest, in frames or plain, to its end or :meth:`stop`."""

    def __init__(self, source: int, sink: int, *, framed: bool) -> None:
        super().__init__(name=f"input-{source}", daemon=True)
        self._source = source
        self._sink = sink
        self._framed = framed
        self._ending = threading.Event()
        os.set_blocking(sink, False)

    def run(self) -> None:
        while not self._ending.is_set():
            if not poll(self._source, select.POLLIN):
                continue
            try:
                data = os.read(self._source, _CHUNK)
            except BlockingIOError:
                continue
            except OSError:  # closed; or a terminal whose job runs in the background
                data = b""
            if self._framed:
                self._send(b"%d\n" % len(data) + data)
            elif data:
                self._send(data)
            if not data:
                return

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._ending.is_set():
            try:
                view = view[os.write(self._sink, view) :]
            except BlockingIOError:
                poll(self._sink, select.POLLOUT)
            except OSError:  # the guest is gone
                self._ending.set()

    def stop(self) -> None:
        """Make the thread end within a fraction of a second."""
        self._ending.set()


def poll(descriptor: int, events: int) -> bool:
    """Wait a fraction of a second for ``events``; a regular file and an error are always ready."""
    waiting = select.poll()
    waiting.register(descriptor, events)
    return bool(waiting.poll(_POLL_MILLISECONDS))


class RawTerminal:
    """Puts a terminal into raw mode and back: keys go to the guest, whose own terminal interprets them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._saved: list[object] | None = None

    def enter(self) -> None:
        """Save the settings and make the terminal raw."""
        with contextlib.suppress(termios.error):
            self._saved = termios.tcgetattr(self._descriptor)
            tty.setraw(self._descriptor, termios.TCSADRAIN)

    def leave(self) -> None:
        """Restore what :meth:`enter` saved. May be called any number of times."""
        if self._saved is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._saved)  # type: ignore[arg-type]
            self._saved = None

    def __enter__(self) -> "RawTerminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


def window_size(descriptor: int) -> tuple[int, int]:
    """Return rows and columns of a terminal; 24 and 80 where they are unknown."""
    try:
        rows, columns, _, _ = struct.unpack("=HHHH", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return 24, 80
    return rows or 24, columns or 80


def set_window_size(descriptor: int, window: tuple[int, int]) -> None:
    """Give a pseudo terminal its rows and columns; the guest's terminal follows it."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("=HHHH", *window, 0, 0))


class GuestStreams:
    """All consoles of one guest, as a context: inside it the kernel may be started with ``kernels_ends``.

    With standard input and output on a terminal, the guest gets a pseudo terminal; else COMMAND gets pipes. Leaving the
    context restores the terminal and closes every descriptor.
    """

    def __init__(self) -> None:
        self.terminal = is_terminal(0) and is_terminal(1)
        self.separate_stderr = not (self.terminal and is_terminal(2))
        self.kernels_ends: list[int] = []
        self.control = -1  # where the guest's side of the control line is read
        self._ours: list[int] = []
        self._outputs: list[OutputPump] = []
        self._input: InputPump | None = None
        self._tell = self._master = -1
        self._raw = RawTerminal(0)

    def __enter__(self) -> Consoles:
        self._tell, control_in = self._pipe(to_guest=True)
        self.control, control_out = self._pipe(to_guest=False)
        os.set_blocking(self._tell, False)
        consoles = Consoles(control_in=control_in, control_out=control_out)
        if self.terminal:
            self._master, slave = pty.openpty()
            self._ours.append(self._master)
            self.kernels_ends.append(slave)
            self.resize()
            self._outputs.append(OutputPump(self._master, 1, lambda: self.tell("signal HUP")))
            self._input = InputPump(0, self._master, framed=False)
            consoles = replace(consoles, terminal=slave)
        else:
            feed, stdin = self._pipe(to_guest=True)
            output, stdout = self._pipe(to_guest=False)
            self._input = InputPump(0, feed, framed=True)
            self._outputs.append(OutputPump(output, 1, lambda: self.tell("close stdout")))
            consoles = replace(consoles, stdin=stdin, stdout=stdout)
        if self.separate_stderr:
            output, stderr = self._pipe(to_guest=False)
            self._outputs.append(OutputPump(output, 2, lambda: self.tell("close stderr")))
            consoles = replace(consoles, stderr=stderr)
        return consoles

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.leave()
        for descriptor in self.kernels_ends + self._ours:
            os.close(descriptor)
        self.kernels_ends, self._ours = [], []

    def _pipe(self, *, to_guest: bool) -> tuple[int, int]:
        """Return (our end, the kernel's end) of a new pipe."""
        reading, writing = os.pipe()
        ours, kernels = (writing, reading) if to_guest else (reading, writing)
        self._ours.append(ours)
        self.kernels_ends.append(kernels)
        return ours, kernels

    def started(self) -> None:
        """Close our copies of the kernel's ends, so that its end is an end of file, and carry its output."""
        while self.kernels_ends:
            os.close(self.kernels_ends.pop())
        for pump in self._outputs:
            pump.start()

    def booted(self) -> None:
        """COMMAND starts: carry our input, in raw mode if it is a terminal."""
        if self.terminal:
            self._raw.enter()
        if self._input is not None:
            self._input.start()

    def tell(self, line: str) -> None:
        """Send a line to the guest's process 1, without waiting for an answer."""
        with contextlib.suppress(OSError):
            os.write(self._tell, line.encode() + b"\n")

    def resize(self) -> None:
        """Give the guest's terminal the size of ours."""
        if self._master >= 0:
            set_window_size(self._master, window_size(0))

    def drain(self, wake: int, limit: float | None) -> None:
        """Stop the input, and let the readers of our outputs read the rest. The guest must be gone.

        Args:
            wake: a descriptor with one byte a signal; any but a change of the window's size ends the wait.
            limit: seconds to wait at most; ``None`` waits as long as it takes.
        """
        if self._input is not None and self._input.is_alive():
            self._input.stop()
            self._input.join()
        give_up = None if limit is None else time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(wake, selectors.EVENT_READ)
            for pump in self._outputs:
                pump.join(0.01)
                while pump.is_alive():
                    if selector.select(0.05) and any(number != signal.SIGWINCH for number in os.read(wake, 64)):
                        give_up = 0.0
                    if give_up is not None and time.monotonic() >= give_up:
                        pump.stop()
                        break
