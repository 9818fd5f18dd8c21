"""Several samples at a time on the CPU, each on its share of the cores."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_cores(function: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Iterator[Result]:
    """function(item) for each item, in order; `at_once` of them run in threads that share torch's threads.

    A sample on one core never waits for another core, which the loaders' workers may have taken, at the end of
    each of its many small products. Raises what `function` raises.
    """
    if at_once == 1:
        yield from map(function, items)
        return
    threads = torch.get_num_threads()
    share = max(1, threads // at_once)
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(share,))
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > at_once:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # parts of torch know one number for all threads
