"""Signals that end a script in order."""

import os
import signal

import pytest

from scripts.stop_signals import signals_as_exceptions


def test_signal_unwinds_with_its_number() -> None:
    with pytest.raises(SystemExit) as caught, signals_as_exceptions() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
    assert (caught.value.code, stop.number) == (128 + signal.SIGHUP, signal.SIGHUP)


def test_hangup_that_nohup_has_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_exceptions() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.number == 0
    finally:
        signal.signal(signal.SIGHUP, before)
