"""Handling of SIGINT and SIGTERM."""

import os
import signal

import pytest

from search.signals import SignalHandler

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", BOTH)
def test_either_signal_interrupts_once_and_handlers_are_restored(number):
    before = [signal.getsignal(s) for s in BOTH]
    handled = []

    def interrupt():
        with SignalHandler().installed():
            try:
                os.kill(os.getpid(), number)
            finally:
                # A second and a third signal have no effect.
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
                handled.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert handled
    assert [signal.getsignal(s) for s in BOTH] == before


@pytest.mark.parametrize("number", BOTH)
def test_a_deferred_signal_sets_the_event_and_raises_at_the_end(number):
    signals, numbers = SignalHandler(), []

    def work():
        with signals.installed(), signals.deferred():
            assert not signals.stop_event.is_set()
            with signals.stop_event._cond:  # as a wait that the signal interrupts
                os.kill(os.getpid(), number)
            assert signals.stop_event.wait(10)
            numbers.append(signals.signal_number)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert numbers == [number]


def test_without_a_signal_nothing_is_raised():
    signals = SignalHandler()
    with signals.installed(), signals.deferred():
        pass
    assert (signals.stop_event.is_set(), signals.signal_number) == (False, None)
    with pytest.raises(ZeroDivisionError), signals.installed(), signals.deferred():
        raise ZeroDivisionError


def test_a_signal_does_not_hide_an_exception():
    signals = SignalHandler()

    def work():
        with signals.installed(), signals.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert signals.stop_event.wait(10)
