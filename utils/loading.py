"""What every DataLoader here needs: errors that come out of workers whole, and workers that end with their parent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def follow_parent(_worker_id: int) -> None:
    """The `worker_init_fn` of a DataLoader: leave Ctrl-C to the parent, and end when it ends, however it does.

    torch's own watch is not enough: a worker whose results nobody takes waits for ever in its last write, with
    its memory and with the parent's locks, which a fork inherits.
    """
    start_worker()
