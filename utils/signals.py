"""SIGTERM as an exception, so that what was begun is ended in order."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Terminated(BaseException):
    """SIGTERM: somebody wants this process to end; a launcher does when another one of the run is gone."""


INTERRUPTED, TERMINATED = 130, 143  # exit status after Ctrl-C and SIGTERM, as shells have it
TERMINATED_WORKER = re.compile(r"DataLoader worker .* killed by signal: Terminated")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated while the block runs, also where a loader's process is hit first; for the main thread.

    From then on it is no news that loaders' processes end, and another SIGTERM changes nothing.
    """

    def end(_signal: int, _frame: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if hasattr(signal, "SIGCHLD"):
            signal.signal(
                signal.SIGCHLD, signal.SIG_DFL
            )  # torch's handler raises RuntimeError, wherever we are
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except RuntimeError as error:
        if TERMINATED_WORKER.search(str(error)):
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
