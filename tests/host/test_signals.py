"""The thread that takes the signals which stop the daemon."""

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from host import signals as signals_module
from host.signals import SIGNALS, SignalThread
from tests.harness.processes import DEADLINE


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    interval, handler = sys.getswitchinterval(), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda _number, _frame: pytest.fail("not taken by the thread"))
    yield
    signal.signal(signal.SIGTERM, handler)
    sys.setswitchinterval(interval)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(SIGNALS)


def send(number: signal.Signals = signal.SIGTERM) -> None:
    # To that thread alone: a test runner has threads of its own, which do not hold the signal.
    thread = next(thread for thread in threading.enumerate() if thread.name == "signals")
    assert thread.ident is not None
    signal.pthread_kill(thread.ident, number)


def test_an_end_that_takes_too_long_is_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the thread is that should bring it about: it does nothing here."""
    monkeypatch.setattr(signals_module, "STOP_DEADLINE", 0.01)
    seen, overdue = threading.Event(), threading.Event()
    signals = SignalThread(seen.set, overdue.set, {})
    signals.start()
    send()
    assert seen.wait(DEADLINE)
    assert overdue.wait(DEADLINE)
    signals.close()


def test_an_end_in_time_is_not_overdue() -> None:
    seen, overdue = threading.Event(), threading.Event()
    signals = SignalThread(seen.set, overdue.set, {})
    signals.start()
    send()
    assert seen.wait(DEADLINE)
    signals.close()
    assert not overdue.is_set()


def test_other_signals_have_their_actions_until_the_end() -> None:
    hang_up, stopped = threading.Semaphore(0), threading.Event()
    signals = SignalThread(stopped.set, lambda: None, {signal.SIGHUP: hang_up.release})
    signals.start()
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGHUP):
        send(number)
        assert number is signal.SIGUSR1 or hang_up.acquire(timeout=DEADLINE)
    assert not stopped.is_set()
    send()
    assert stopped.wait(DEADLINE)
    signals.close()


def test_an_end_without_a_signal() -> None:
    seen, overdue = threading.Event(), threading.Event()
    signals = SignalThread(seen.set, overdue.set, {})
    signals.start()
    signals.close()
    assert not seen.is_set()
    assert not overdue.is_set()


def test_without_a_thread_the_handlers_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    called = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: called.set())
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        signals = SignalThread(called.set, called.set, {})
        signals.start()
    os.kill(os.getpid(), signal.SIGTERM)
    assert called.wait(DEADLINE)
    signals.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
