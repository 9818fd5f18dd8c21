"""A batch's way into the training: a folder of features -> pairs of a sample -> batches -> loader."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from models.checkpoints import CheckpointError
from models.uff.feature_store import (
    MANIFEST_NAME,
    SAVE_AGAIN,
    StoredSample,
    StoreMeta,
    read_manifest,
    read_sample,
    sample_name,
)
from models.uff.pairing import Pairing, paired_rgb
from models.uff.released_features import read_released_sample, released_meta
from utils.loading import ErrorsAsItems, follow_parent, interrupts_later

MIN_FILES_TO_HOLD_OUT = 4
SAVE_FIRST = (
    "write features first: python3 main.py --method_name DINO+Point_MAE --memory_bank multiple --save_feature"
)


@dataclass(frozen=True)
class FeatureFolder:
    """A folder that may be trained on; `read` brings one of `files` into memory."""

    files: tuple[Path, ...]
    read: Callable[[Path], StoredSample]
    meta: StoreMeta

    def fingerprint(self) -> str:
        """A checksum of what is in the files, by the checksums that they hold themselves: no array is read."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.name} {_checksums(file)}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


class PatchPairs(NamedTuple):
    """Pairs of patches, of one sample or several.

    xyz (n, Dx): xyz patches; rgb (m, Dr): the rgb patches that belong to them, each once; rgb_row (n,)
    int64: which one; files: where the samples come from.
    """

    xyz: torch.Tensor
    rgb: torch.Tensor
    rgb_row: torch.Tensor
    files: tuple[str, ...]

    def to(self, device: torch.device) -> PatchPairs:
        """The pairs on `device`, features as float32."""
        xyz, rgb, rgb_row = (x.to(device, non_blocking=True) for x in self[:3])
        return PatchPairs(xyz.float(), rgb.float(), rgb_row, self.files)


def _checksums(file: Path) -> str:
    """Of the parts of an archive; of a file that is none, as of old versions of torch, its size."""
    try:
        with zipfile.ZipFile(file) as archive:
            return repr([(part.filename, part.CRC, part.file_size) for part in archive.infolist()])
    except zipfile.BadZipFile:
        return str(file.stat().st_size)


def open_folder(folder: str | Path) -> FeatureFolder:
    """A folder written by FeatureStoreWriter, or one of the release's .pt files.

    FileNotFoundError when it or a listed file is missing or it holds no features; ValueError when it mixes
    both formats, or a listed file is cut off.
    """
    if not str(folder):
        raise ValueError("--data_path: name the folder of the features, as in --data_path datasets/patch_lib")
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; {SAVE_FIRST}")
    released = sorted(folder.glob("*.pt"))
    if (folder / MANIFEST_NAME).exists():
        if released:
            raise ValueError(
                f"{folder}: holds {MANIFEST_NAME} and files of the release ({released[0].name}); separate them"
            )
        return _open_store(folder)
    if not released:
        raise FileNotFoundError(f"{folder}: holds no features; {SAVE_FIRST}")
    meta = released_meta(released[0])
    return FeatureFolder(tuple(released), partial(read_released_sample, meta=meta), meta)


def _open_store(folder: Path) -> FeatureFolder:
    meta, classes = read_manifest(folder)
    files = []
    for file in (folder / sample_name(name, i) for name in sorted(classes) for i in range(classes[name])):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: is listed in {MANIFEST_NAME} but missing; {SAVE_AGAIN}")
        if not zipfile.is_zipfile(file):
            raise CheckpointError(f"{file}: not a readable .npz file (cut off or damaged); {SAVE_AGAIN}")
        files.append(file)
    if not files:
        raise FileNotFoundError(f"{folder}: {MANIFEST_NAME} lists no complete class; {SAVE_FIRST}")
    return FeatureFolder(tuple(files), partial(read_sample, meta=meta), meta)


def read_pairs(file: Path, folder: FeatureFolder, pairing: Pairing) -> PatchPairs:
    """The pairs of a file that count in the loss: those whose xyz values are all non-zero.

    ValueError when the file can't be used.
    """
    sample = folder.read(file)
    rgb_of_row = paired_rgb(pairing, folder.meta.rgb_side, folder.meta.xyz_side)
    counts = (sample.xyz != 0).all(dim=1)
    patch, rgb_row = rgb_of_row[sample.xyz_row[counts]].unique(return_inverse=True)
    return PatchPairs(sample.xyz[counts], sample.rgb[patch], rgb_row, (file.name,))


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


class PairsLoader(DataLoader[PatchPairs]):
    """Batches of pairs; raises the ValueError of a file that can't be used."""

    def __iter__(self) -> Iterator[PatchPairs]:
        with interrupts_later():
            batches = super().__iter__()
        for batch in batches:
            if isinstance(batch, ValueError):
                raise batch
            yield batch


def make_loader(
    folder: FeatureFolder,
    files: Sequence[Path],
    pairing: Pairing,
    batches: GlobalBatches,
    *,
    num_workers: int,
    pin_memory: bool,
) -> PairsLoader:
    """A loader of `batches` of these files; no more workers than there are batches."""
    workers = min(num_workers, len(batches))
    return PairsLoader(
        ErrorsAsItems(files, partial(read_pairs, folder=folder, pairing=pairing)),
        batch_sampler=batches,
        collate_fn=partial(collate, xyz_dim=folder.meta.xyz_dim, rgb_dim=folder.meta.rgb_dim),
        num_workers=workers,
        worker_init_fn=follow_parent,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
    )


def collate(items: Sequence[PatchPairs | ValueError], xyz_dim: int, rgb_dim: int) -> PatchPairs | ValueError:
    """The pairs of all samples, one sample after another, or the first error; of no samples, no pairs."""
    samples: list[PatchPairs] = []
    for item in items:
        if isinstance(item, ValueError):
            return item
        samples.append(item)
    if not samples:
        return PatchPairs(
            torch.empty(0, xyz_dim), torch.empty(0, rgb_dim), torch.empty(0, dtype=torch.int64), ()
        )
    first_rgb = np.cumsum([0, *(len(sample.rgb) for sample in samples[:-1])])
    return PatchPairs(
        torch.cat([sample.xyz for sample in samples]),
        torch.cat([sample.rgb for sample in samples]),
        torch.cat([sample.rgb_row + first for sample, first in zip(samples, first_rgb, strict=True)]),
        tuple(name for sample in samples for name in sample.files),
    )
