"""Ctrl-C and SIGTERM as exceptions that are not lost, so that what was begun is ended in order."""

from __future__ import annotations

import _thread
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs


class Terminated(BaseException):
    """SIGTERM: somebody wants this process to end; a launcher does when another one of the run is gone."""


INTERRUPTED, TERMINATED = 130, 143  # exit status after Ctrl-C and SIGTERM, as shells have it
TERMINATED_WORKER = re.compile(r"DataLoader worker .* killed by signal: Terminated")
NUMBERS: dict[type[BaseException], signal.Signals] = {
    KeyboardInterrupt: signal.SIGINT,
    Terminated: signal.SIGTERM,
}
AGAIN_S = 0.05  # time for a finalizer to end


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated while the block runs, also where a loader's process is hit first; for the main thread.

    From then on it is no news that loaders' processes end, and another SIGTERM changes nothing.
    """
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        with never_lost():
            yield
    except RuntimeError as error:
        if TERMINATED_WORKER.search(str(error)):
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def never_lost() -> Iterator[None]:
    """A signal is raised again while the block runs, where its exception was dropped; for the main thread.

    Python drops what is raised in finalizers: `__del__`, and what runs when a weak reference dies, as it does at the
    end of every thread. A program that has to be told to end once would go on for ever.
    """
    before = sys.unraisablehook
    on_the_way: set[signal.Signals] = set()

    def interrupt_again(number: signal.Signals) -> None:
        """A thread without Python's locks: the finalizer may have come while the main thread held one."""
        time.sleep(AGAIN_S)
        if number in on_the_way:
            on_the_way.remove(number)
            _thread.interrupt_main(number)

    def hook(dropped: UnraisableHookArgs) -> None:
        number = next((n for kind, n in NUMBERS.items() if issubclass(dropped.exc_type, kind)), None)
        if number is None:
            before(dropped)
            return
        if number == signal.SIGTERM:
            signal.signal(number, _raise_terminated)
        if number not in on_the_way:
            on_the_way.add(number)
            _thread.start_new_thread(interrupt_again, (number,))

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        on_the_way.clear()


def _raise_terminated(_signal: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises RuntimeError, wherever we are
    raise Terminated
