"""What every DataLoader here needs: errors that come out of workers whole, and workers that end with their parent."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, TypeVar

from torch.utils.data import Dataset

from utils.preprocess.workers import start_worker

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


class ErrorsAsItems(Dataset, Generic[Item, Loaded]):
    """`load(item)` of each item, or the ValueError it raised: raised in a worker, it would come wrapped in a traceback.

    With workers that are spawned instead of forked, `items` and `load` are pickled.
    """

    def __init__(self, items: Sequence[Item], load: Callable[[Item], Loaded]) -> None:
        self.items = items
        self.load = load

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Loaded | ValueError:
        try:
            return self.load(self.items[i])
        except ValueError as error:
            return error


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until the block has ended; processes that are started in it do not see it at all.

    For the start of workers: one that is interrupted before it could ignore the signal dies with a traceback.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent(_worker_id: int) -> None:
    """The `worker_init_fn` of a DataLoader: leave Ctrl-C to the parent, and end when it ends, however it does.

    torch's own watch is not enough: a worker whose results nobody takes waits for ever in its last write, with
    its memory and with the parent's locks, which a fork inherits.
    """
    sys.excepthook = _print_unless_the_parent_left
    start_worker()


def _print_unless_the_parent_left(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """For the thread that hands tensors over: a parent that ends meanwhile has said why, or was killed."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, traceback)
