"""Loading items in a DataLoader's workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from torch.utils.data import Dataset

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


class ErrorsAsItems(Dataset, Generic[Item, Loaded]):
    """load(item) for each item, or the ValueError that it raised: raised in a worker it would come wrapped."""

    def __init__(self, items: Sequence[Item], load: Callable[[Item], Loaded]) -> None:
        self._items = items
        self._load = load

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> Loaded | ValueError:
        try:
            return self._load(self._items[i])
        except ValueError as error:
            return error
