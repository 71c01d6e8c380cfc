"""Pumps between standard streams and consoles, and the terminal's mode."""

import os
import pty
import termios

from guest.linux.streams import InputPump, OutputPump, RawTerminal, set_window_size, window_size


def read_to_end(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 65536):
        parts.append(part)
    return b"".join(parts)


def test_input_is_framed_and_ends_with_an_empty_frame() -> None:
    source, feed = os.pipe()
    taken, sink = os.pipe()
    os.write(feed, b"three\nlines\n\0")
    os.close(feed)
    pump = InputPump(source, sink, framed=True)
    pump.start()
    pump.join(10)
    os.close(sink)
    assert read_to_end(taken) == b"13\nthree\nlines\n\x000\n"
    for descriptor in (source, taken):
        os.close(descriptor)


def test_input_without_end_can_be_stopped() -> None:
    source, feed = os.pipe()
    taken, sink = os.pipe()
    pump = InputPump(source, sink, framed=True)
    pump.start()
    pump.stop()
    pump.join(10)
    assert not pump.is_alive()
    for descriptor in (source, feed, taken, sink):
        os.close(descriptor)


def test_output_arrives_whole() -> None:
    source, feed = os.pipe()
    taken, sink = os.pipe()
    pump = OutputPump(source, sink, lambda: None)
    pump.start()
    os.write(feed, bytes(range(256)))
    os.close(feed)
    pump.join(10)
    os.close(sink)
    assert read_to_end(taken) == bytes(range(256))
    for descriptor in (source, taken):
        os.close(descriptor)


def test_reader_that_left_is_told_once_and_the_rest_is_dropped() -> None:
    source, feed = os.pipe()
    taken, sink = os.pipe()
    os.close(taken)
    broken: list[bool] = []
    pump = OutputPump(source, sink, lambda: broken.append(True))
    pump.start()
    for _ in range(8):
        os.write(feed, bytes(65536))  # more than a pipe holds: the pump must be reading
    os.close(feed)
    pump.join(10)
    assert broken == [True]
    for descriptor in (source, sink):
        os.close(descriptor)


def test_pseudo_terminal_carries_both_directions() -> None:
    """The input pump makes the master non-blocking; the output pump must not take that for an end."""
    master, slave = pty.openpty()
    source, feed = os.pipe()
    taken, sink = os.pipe()
    outward, inward = OutputPump(master, sink, lambda: None), InputPump(source, master, framed=False)
    outward.start()
    inward.start()
    os.write(feed, b"typed\n")
    assert os.read(slave, 100) == b"typed\n"
    os.write(slave, b"shown\n")
    shown = b""
    while b"shown" not in shown:
        shown += os.read(taken, 100)
    os.close(slave)
    outward.join(10)
    assert not outward.is_alive()
    os.close(feed)
    inward.join(10)
    for descriptor in (master, source, taken, sink):
        os.close(descriptor)


def test_raw_terminal_is_restored() -> None:
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    with RawTerminal(slave) as raw:
        raw.enter()
        assert not termios.tcgetattr(slave)[3] & termios.ICANON
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_window_size_of_a_terminal_and_of_something_else() -> None:
    master, slave = pty.openpty()
    set_window_size(master, (50, 132))
    assert window_size(slave) == (50, 132)
    os.close(master)
    os.close(slave)
    reading, writing = os.pipe()
    assert window_size(reading) == (24, 80)
    os.close(reading)
    os.close(writing)
