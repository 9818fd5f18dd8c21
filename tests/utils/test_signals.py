"""Signals as exceptions: none is lost in a finalizer, and what was set before is set again."""

from __future__ import annotations

import signal
import sys
import time
import weakref

import pytest

from utils.signals import AGAIN_S, Terminated, ended_by_sigterm, never_lost

WAIT_S = 20
EXCEPTIONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


class Thing:
    """Something that dies."""


class Deleted:
    """Something that raises a signal as it dies."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


def _drop(things: list[object]) -> None:
    """Let the things die, then wait for a signal."""
    things.clear()
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        time.sleep(0.01)


@pytest.mark.parametrize("number", EXCEPTIONS)
class TestInAFinalizer:
    def test_a_signal_when_a_weak_reference_dies_is_raised_again(self, number):
        things = [Thing()]
        reference = weakref.ref(things[0], lambda _: signal.raise_signal(number))
        with pytest.raises(EXCEPTIONS[number]), ended_by_sigterm():
            _drop(things)
        assert reference() is None

    def test_a_signal_in_a_del_is_raised_again(self, number):
        things = [Deleted(number)]
        with pytest.raises(EXCEPTIONS[number]), ended_by_sigterm():
            _drop(things)

    def test_dropped_twice_it_is_raised_once(self, number):
        things = [Deleted(number), Deleted(number)]
        with pytest.raises(EXCEPTIONS[number]), ended_by_sigterm():
            _drop(things)
        time.sleep(3 * AGAIN_S)  # would end the tests


@pytest.mark.parametrize("number", EXCEPTIONS)
def test_work_that_ends_meanwhile_has_ended_well(number):
    with ended_by_sigterm():
        things = [Deleted(number)]
        things.clear()
    time.sleep(3 * AGAIN_S)  # would end the tests


def test_other_exceptions_in_finalizers_are_told_as_before(monkeypatch):
    class Raising:
        def __del__(self) -> None:
            raise ValueError("of no account")

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda dropped: told.append(str(dropped.exc_value)))
    with never_lost():
        things = [Raising()]
        things.clear()
    assert told == ["of no account"]


def test_what_was_set_before_is_set_again():
    before = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with ended_by_sigterm():
        assert signal.getsignal(signal.SIGTERM) != before[0]
        assert sys.unraisablehook is not before[1]
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before
