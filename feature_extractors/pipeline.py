"""Many samples through the extractor: loader processes prepare, several batches at once share the cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from feature_extractors.extractor import Extractor, Preparation, PreparedSample
from feature_extractors.feature_cache import FeatureCache, Kept
from utils.loading import ErrorsAsItems, follow_parent, interrupts_later
from utils.observer import Observer
from utils.parallel import map_on_cores
from utils.structures import Modality, Patches, Sample

Item = TypeVar("Item")
Result = TypeVar("Result")
Loaded = PreparedSample | Kept | ValueError


class Pipeline(Generic[Item]):
    """Runs samples through an extractor, in order.

    load: an item -> Sample, in the loader's workers; ValueError where it can't be used. name: what an item is called
    in reports. batch_size: samples a forward pass; num_workers: loader processes. No result depends on the two.
    cache: where features are kept, if they are.
    """

    def __init__(
        self,
        extractor: Extractor,
        load: Callable[[Item], Sample],
        *,
        batch_size: int,
        num_workers: int,
        cache: FeatureCache | None = None,
    ) -> None:
        self._extractor = extractor
        self._load = load
        self._cache = cache
        self._batch_size = batch_size
        self._num_workers = num_workers

    def run(
        self,
        items: Sequence[Item],
        names: Sequence[str],
        finish: Callable[[Mapping[Modality, Patches]], Result],
        observer: Observer,
        title: str,
    ) -> Iterator[Result | None]:
        """`finish` of the patches of each item; None for one that can't be used, of which the observer is told."""
        self._extractor.restart()

        def work(batch: list[tuple[Item, Loaded]]) -> list[tuple[Loaded, Result | ValueError]]:
            patches = iter(self._patches(batch))
            return [
                (loaded, loaded if isinstance(loaded, ValueError) else _finished(next(patches), finish))
                for _, loaded in batch
            ]

        remaining = iter(names)
        with observer.progress(title, len(items)) as advance:
            for results in map_on_cores(work, self._batches(items), self._extractor.batches_at_once):
                for loaded, result in results:
                    yield _told(next(remaining), loaded, result, observer)
                advance(len(results))

    def _patches(self, batch: Sequence[tuple[Item, Loaded]]) -> list[dict[Modality, Patches]]:
        """Patches of the samples of a batch that can be used, in order; those of kept ones are only fused."""
        new = [(item, loaded) for item, loaded in batch if isinstance(loaded, PreparedSample)]
        extracted = self._extractor.backbone_patches([loaded for _, loaded in new]) if new else []
        if self._cache:
            for (item, loaded), patches in zip(new, extracted, strict=True):
                self._cache.write(item, patches, loaded.remarks_of, loaded.kept)
        fresh = iter(extracted)
        usable = [loaded for _, loaded in batch if not isinstance(loaded, ValueError)]
        return [
            self._extractor.fused(loaded.patches if isinstance(loaded, Kept) else next(fresh))
            for loaded in usable
        ]

    def _batches(self, items: Sequence[Item]) -> Iterator[list[tuple[Item, Loaded]]]:
        prepared = ErrorsAsItems(items, Prepare(self._load, self._extractor.preparation, self._cache))
        if self._num_workers > 0 and len(items):
            prepared[0]  # compiles the kernels here once, not in every worker
        loader = DataLoader(
            prepared,
            batch_size=self._batch_size,
            num_workers=self._num_workers,
            collate_fn=list,
            worker_init_fn=follow_parent,
        )
        remaining = iter(items)
        with interrupts_later():
            batches = iter(loader)
        return ([(next(remaining), loaded) for loaded in batch] for batch in batches)


@dataclass(frozen=True)
class Prepare(Generic[Item]):
    """Loads an item and prepares its cloud, unless its features are kept; picklable, for the loader's workers."""

    load: Callable[[Item], Sample]
    preparation: Preparation
    cache: FeatureCache | None = None

    def __call__(self, item: Item) -> PreparedSample | Kept:
        if self.cache is None:
            return self.preparation(self.load(item))
        kept = self.cache.read(item)
        if set(kept.patches) == self.cache.modalities:
            return kept
        return self.preparation(self.load(item), kept)


def check_features(patches: Mapping[Modality, Patches]) -> None:
    """Raises ValueError naming the features that hold NaN or infinity, or nothing but zeros: the most normal of all."""
    ruined = [name for name, found in patches.items() if not torch.isfinite(found.rows).all()]
    if ruined:
        raise ValueError(f"its {' and '.join(ruined)} features are not finite")
    empty = [name for name, found in patches.items() if not found.rows.any()]
    if empty:
        raise ValueError(f"its {' and '.join(empty)} features are all zero")


def _finished(
    patches: Mapping[Modality, Patches], finish: Callable[[Mapping[Modality, Patches]], Result]
) -> Result | ValueError:
    """`finish` of the patches, or why there is no such thing; a sample's trouble is its own."""
    try:
        check_features(patches)
        return finish(patches)
    except ValueError as error:
        return error


def _told(name: str, loaded: Loaded, result: Result | ValueError, observer: Observer) -> Result | None:
    if isinstance(result, ValueError):
        observer.left_out(name, str(result))
        return None
    if not isinstance(loaded, ValueError):
        for text in loaded.remarks:
            observer.remark(name, text)
    return result
