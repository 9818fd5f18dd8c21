"""Independent jobs in parallel processes, for runs that may be interrupted and repeated."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int
) -> Generator[Result, None, None]:
    """Results in the order of the jobs, as they come; closing the iterator gives up the jobs not yet begun.

    With one worker or one job everything runs in this process. Raises what `function` raises, and
    concurrent.futures.process.BrokenProcessPool when a worker is killed.
    """
    if num_workers == 1 or len(jobs) < 2:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(min(num_workers, len(jobs)), initializer=_start) as pool:
        yield from pool.map(function, jobs)


def _start() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a handler of the parent's would not let the pool end it
    start_worker()


def start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends: nothing may be written once the next run has begun.

    A thread waits for the parent's end of a pipe to close. Linux can signal a parent's death too (prctl), but does
    so at the end of the thread that started the worker, which may be long before.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
