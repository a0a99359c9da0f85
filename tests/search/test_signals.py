"""What whoever works on a study needs: signals, a clock, weights."""

import os
import signal
from datetime import datetime, timedelta

import pytest
from optuna.trial import TrialState, create_trial

from lesionseg.errors import InputError
from search.signals import SignalHandler, sigterm_as_interrupt
from search.storage.training_time import TimeBudget
from search.study.weights import ensure_space_weights
from tests.search.helpers import tiny_spec

BOTH = (signal.SIGINT, signal.SIGTERM)


# --- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", BOTH)
def test_either_signal_is_an_interrupt_once_and_the_handlers_come_back(number):
    before = [signal.getsignal(s) for s in BOTH]
    calm = []

    def be_interrupted():
        with sigterm_as_interrupt():
            try:
                os.kill(os.getpid(), number)
            finally:
                # An impatient second and third change nothing while the first is dealt with.
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGTERM)
                calm.append(True)

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert calm
    assert [signal.getsignal(s) for s in BOTH] == before


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_that_is_held_is_seen_at_once_and_raised_at_the_end(number):
    signals, went_on = SignalHandler(), []

    def work():
        with signals.installed(), signals.deferred():
            assert not signals.stop_event.is_set()
            os.kill(os.getpid(), number)
            assert signals.stop_event.is_set()
            went_on.append(signals.signal_number)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert went_on == [number]


def test_work_that_nobody_interrupts_ends_as_it_ends():
    signals = SignalHandler()
    with signals.installed(), signals.deferred():
        pass
    assert (signals.stop_event.is_set(), signals.signal_number) == (False, None)
    with pytest.raises(ZeroDivisionError), signals.installed(), signals.deferred():
        raise ZeroDivisionError


def test_what_the_work_itself_raises_is_not_hidden_by_a_signal():
    signals = SignalHandler()

    def work():
        with signals.installed(), signals.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert signals.stop_event.is_set()


# --- the clock ---------------------------------------------------------------------------------


def trial(device: str, hours: float, share: float = 1.0):
    """One that was trained for so long, from 2026 on."""
    made = create_trial(state=TrialState.COMPLETE, value=0.5)
    began = datetime(2026, 1, 1)
    made.datetime_start, made.datetime_complete = began, began + timedelta(hours=hours)
    made.user_attrs["owner"] = {"device": device, "share": share}
    return made


def test_without_limits_no_time_is_over():
    assert not TimeBudget(None, None).is_over([trial("cuda", 1000)])


@pytest.mark.parametrize(("hours", "over"), [(1.5, True), (2.0, True), (2.5, False)])
def test_hours_are_by_the_clock_however_many_train(hours, over):
    side_by_side = [trial("cpu", 2), trial("cpu", 1), trial("cuda", 2)]
    assert TimeBudget(hours, None).is_over(side_by_side) is over


@pytest.mark.parametrize(("gpu_hours", "over"), [(2.5, True), (3.0, False)])
def test_gpu_hours_are_added_up_over_those_who_have_one(gpu_hours, over):
    side_by_side = [trial("cuda:0", 2), trial("cuda:1", 1, share=0.5), trial("cpu", 2)]
    assert TimeBudget(None, gpu_hours).is_over(side_by_side) is over


def test_either_limit_ends_it_and_nothing_is_over_before_it_began():
    assert TimeBudget(1, 100).is_over([trial("cuda", 2)])
    assert TimeBudget(100, 1).is_over([trial("cuda", 2)])
    assert not TimeBudget(1e-9, 1e-9).is_over([])


# --- weights -----------------------------------------------------------------------------------


def test_weights_that_are_not_there_are_told_and_a_space_without_any_needs_none():
    ensure_space_weights(tiny_spec().space)
    lacking = {"smp_fpn": {"encoder": "resnet18", "weights": "/no/such/file.safetensors"}}
    spec = tiny_spec({"search.model": lacking, "data.image_size": 32})
    with pytest.raises(InputError, match=r"/no/such/file\.safetensors"):
        ensure_space_weights(spec.space)
