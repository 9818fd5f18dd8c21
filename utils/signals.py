"""SIGTERM as an exception, so that what was begun is ended in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Terminated(BaseException):
    """SIGTERM: somebody wants this process to end; a launcher does when another one of the run is gone."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM raises Terminated while the block runs; for the main thread."""

    def end(_signal: int, _frame: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
