"""Reading training features for UFF: a folder -> samples -> batches of xyz patches with their rgb patches."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from models.checkpoints import read_torch_file
from models.uff.engine import PatchPairs
from models.uff.feature_store import (
    INDEX_NAME,
    Pairing,
    StoredSample,
    StoreMeta,
    damaged,
    paired_rgb,
    read_index,
    read_sample,
    sample_name,
)

# The release's files: (3136, 1152 + rgb dim) float32, xyz first, grids of 56x56 and 28x28 patches.
RELEASED_XYZ_DIM = 1152
RELEASED_XYZ_SIDE = 56
RELEASED_RGB_SIDE = 28

MIN_FILES_TO_HOLD_OUT = 4
SAVE_REMEDY = (
    "write features first: python3 main.py --method_name DINO+Point_MAE --memory_bank multiple --save_feature"
)


@dataclass(frozen=True)
class FeatureFolder:
    """A folder that may be trained on; `read` brings one of `files` into memory."""

    files: tuple[Path, ...]
    read: Callable[[Path], StoredSample]
    meta: StoreMeta


def open_folder(folder: str | Path) -> FeatureFolder:
    """A folder written by FeatureStoreWriter, or one of the release's .pt files.

    FileNotFoundError when it or a listed file is missing or it holds no features; ValueError when it mixes
    both formats, or a listed file is cut off.
    """
    if not str(folder):
        raise ValueError("--data_path: name the folder of the features, as in --data_path datasets/patch_lib")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; {SAVE_REMEDY}")
    released = sorted(folder.glob("*.pt"))
    if not (folder / INDEX_NAME).exists():
        return _open_released(folder, released)
    if released:
        raise ValueError(
            f"{folder}: holds {INDEX_NAME} and files of the release ({released[0].name}); separate them"
        )
    return _open_store(folder)


def _open_store(folder: Path) -> FeatureFolder:
    meta, classes = read_index(folder)
    files = tuple(folder / sample_name(name, i) for name in sorted(classes) for i in range(classes[name]))
    if not files:
        raise FileNotFoundError(f"{folder}: {INDEX_NAME} lists no complete class; {SAVE_REMEDY}")
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file}: is listed in {INDEX_NAME} but missing; save its class anew")
        if not zipfile.is_zipfile(file):
            raise damaged(file, "no end of archive")
    return FeatureFolder(files, partial(read_sample, meta=meta), meta)


def _open_released(folder: Path, files: Sequence[Path]) -> FeatureFolder:
    if not files:
        raise FileNotFoundError(f"{folder}: holds no features; {SAVE_REMEDY}")
    meta = StoreMeta(
        rgb_backbone="unknown",
        xyz_backbone="unknown",
        rgb_dim=_load_released(files[0]).shape[1] - RELEASED_XYZ_DIM,
        xyz_dim=RELEASED_XYZ_DIM,
        rgb_side=RELEASED_RGB_SIDE,
        xyz_side=RELEASED_XYZ_SIDE,
        feature_dtype="float32",
    )
    return FeatureFolder(tuple(files), partial(read_released_sample, rgb_dim=meta.rgb_dim), meta)


def read_released_sample(path: Path, rgb_dim: int) -> StoredSample:
    """A .pt file of the release, whether its rgb rows are scrambled or not; ValueError when it is no such file."""
    features = _load_released(path)
    xyz, rgb = features[:, :RELEASED_XYZ_DIM], features[:, RELEASED_XYZ_DIM:]
    if rgb.shape[1] != rgb_dim:
        raise ValueError(
            f"{path}: has {rgb.shape[1]} rgb numbers a patch, the folder's first file {rgb_dim}; features of "
            "different backbones are mixed, keep each in a folder of its own"
        )
    row = (xyz != 0).any(dim=1).nonzero().squeeze(1)
    return StoredSample(_distinct_rgb(path, rgb), xyz[row], row)


def _distinct_rgb(path: Path, rgb: torch.Tensor) -> torch.Tensor:
    """Each rgb patch once, (784, Dr), from rows in which each stands four times in one of the two pairings."""
    pairings: tuple[Pairing, Pairing] = ("colocated", "scrambled")
    for pairing in pairings:
        patch_of_row = paired_rgb(pairing, RELEASED_RGB_SIDE, RELEASED_XYZ_SIDE)
        _, first_row = np.unique(patch_of_row.numpy(), return_index=True)
        distinct = rgb[torch.from_numpy(first_row)]
        if torch.equal(distinct[patch_of_row], rgb):
            return distinct
    raise ValueError(f"{path}: its rgb rows are neither co-located nor scrambled as the release saves them")


def _load_released(path: Path) -> torch.Tensor:
    features = read_torch_file(path, "save the features of its class again")
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) != 2 or shape[0] != RELEASED_XYZ_SIDE**2 or shape[1] <= RELEASED_XYZ_DIM:
        raise ValueError(
            f"{path}: is no tensor of ({RELEASED_XYZ_SIDE**2}, {RELEASED_XYZ_DIM} + rgb dim), but {shape}"
        )
    return features


class PairsDataset(Dataset[PatchPairs]):
    """The pairs of each file that count in the loss: those whose xyz values are all non-zero."""

    def __init__(self, folder: FeatureFolder, files: Sequence[Path], pairing: Pairing) -> None:
        self.files, self._read = tuple(files), folder.read
        self._rgb_of_row = paired_rgb(pairing, folder.meta.rgb_side, folder.meta.xyz_side)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> PatchPairs:
        sample = self._read(self.files[i])
        counts = (sample.xyz != 0).all(dim=1)
        patch, rgb_index = self._rgb_of_row[sample.xyz_row[counts]].unique(return_inverse=True)
        return PatchPairs(sample.xyz[counts], sample.rgb[patch], rgb_index, (self.files[i].name,))


class GlobalBatches(Sampler[list[int]]):
    """This rank's share of batches of world_size * batch_size samples, shuffled by seed and epoch.

    The samples of a batch do not depend on how many processes share it. The last batch may be smaller, and
    a rank's share of it empty.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._num_samples, self._global_size = num_samples, batch_size * world_size
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self._num_samples // self._global_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self._seed, self.epoch]).permutation(self._num_samples)
        for start in range(0, self._num_samples, self._global_size):
            batch = order[start : start + self._global_size]
            yield np.array_split(batch, self._world_size)[self._rank].tolist()


class _ErrorsAsItems(Dataset["PatchPairs | ValueError"]):
    """A file's error in place of its pairs: raised in a worker, it would come wrapped in a traceback."""

    def __init__(self, pairs: PairsDataset) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> PatchPairs | ValueError:
        try:
            return self._pairs[i]
        except ValueError as error:
            return error


class PairsLoader(DataLoader[PatchPairs]):
    """Batches of pairs; raises the ValueError of a file that can't be used, as the dataset does."""

    def __iter__(self) -> Iterator[PatchPairs]:
        for batch in super().__iter__():
            if isinstance(batch, ValueError):
                raise batch
            yield batch


def make_loader(
    dataset: PairsDataset, batches: GlobalBatches, meta: StoreMeta, *, num_workers: int, pin_memory: bool
) -> PairsLoader:
    """A loader of `batches`; no more workers than there are batches."""
    workers = min(num_workers, len(batches))
    return PairsLoader(
        _ErrorsAsItems(dataset),
        batch_sampler=batches,
        collate_fn=partial(_collate_or_fail, xyz_dim=meta.xyz_dim, rgb_dim=meta.rgb_dim),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )


def _collate_or_fail(
    items: Sequence[PatchPairs | ValueError], xyz_dim: int, rgb_dim: int
) -> PatchPairs | ValueError:
    samples = []
    for item in items:
        if isinstance(item, ValueError):
            return item
        samples.append(item)
    return collate(samples, xyz_dim, rgb_dim)


def collate(samples: Sequence[PatchPairs], xyz_dim: int, rgb_dim: int) -> PatchPairs:
    """The pairs of all samples, one sample after another; of no samples, no pairs."""
    if not samples:
        return PatchPairs(
            torch.empty(0, xyz_dim), torch.empty(0, rgb_dim), torch.empty(0, dtype=torch.int64), ()
        )
    first_rgb = np.cumsum([0, *(len(sample.rgb) for sample in samples[:-1])])
    return PatchPairs(
        torch.cat([sample.xyz for sample in samples]),
        torch.cat([sample.rgb for sample in samples]),
        torch.cat([sample.rgb_index + first for sample, first in zip(samples, first_rgb, strict=True)]),
        tuple(name for sample in samples for name in sample.files),
    )


def split_files(files: Sequence[Path], held_out_share: float, seed: int) -> tuple[list[Path], list[Path]]:
    """(training files, held-out files), drawn by `seed`; with four files or more, one at least is held out."""
    if not 0 <= held_out_share < 1:
        raise ValueError(f"--holdout {held_out_share}: must be a share from 0 to below 1")
    enough = held_out_share > 0 and len(files) >= MIN_FILES_TO_HOLD_OUT
    count = max(1, round(held_out_share * len(files))) if enough else 0
    held_out = set(np.random.default_rng(seed).permutation(len(files))[:count].tolist())
    training = [file for i, file in enumerate(files) if i not in held_out]
    if not training:
        raise ValueError(
            f"--holdout {held_out_share}: leaves none of the {len(files)} samples to train on; use a smaller share"
        )
    return training, [files[i] for i in sorted(held_out)]
