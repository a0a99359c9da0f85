"""Handling of SIGINT, SIGTERM and SIGHUP."""

import os
import signal

import pytest

from search.signals import SignalHandler

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", ALL)
def test_each_signal_interrupts_once_and_handlers_are_restored(number):
    before = [signal.getsignal(s) for s in ALL]
    handled = []

    def interrupt():
        with SignalHandler().installed():
            try:
                os.kill(os.getpid(), number)
            finally:
                # Further signals have no effect.
                for second in ALL:
                    os.kill(os.getpid(), second)
                handled.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert handled
    assert [signal.getsignal(s) for s in ALL] == before


def test_under_nohup_a_closed_terminal_does_not_interrupt():
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalHandler().installed() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.signal_number is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("number", ALL)
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
