"""UFF's training features on disk (datasets/patch_lib): a small file for each sample and one manifest.

A file `<class>_<number>.npz` holds `rgb` (p, Dr), each patch once, and `xyz` (U, Dx), the rows of the larger
grid that are not all zero, with `xyz_row` (U,), their row-major positions. The manifest, `index.json`, says what
the features are: a StoreMeta, and how many samples each class has. Which rgb patch stands beside which xyz
patch is no matter of storage; it follows from the grids (models/uff/pairing.py).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from models.checkpoints import ArrayHeader, CheckpointError, decoded, read_numpy_headers
from models.uff.pairing import Pairing, paired_rgb
from utils.files import (
    after_others,
    alone_with,
    atomic_path,
    in_short,
    read_regular,
    sweep_leftovers,
    write_json,
)
from utils.structures import Modality, Patches

FeatureDtype = Literal["float16", "float32"]

MANIFEST_NAME = "index.json"
LOCK_NAME = ".saving"
MANIFEST_LOCK_NAME = ".index.lock"
FORMAT_NAME = "m3dm-uff-features-2"
LARGEST_DIM, LARGEST_SIDE, LARGEST_COUNT = 2**16, 2**10, 10**6  # of a manifest that is believed
CLASS_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*")  # stays inside the folder, on one line

OTHER_FOLDER = "delete the folder or choose another --save_feature_path"
SAVE_AGAIN = "run main.py --save_feature for its class again"


@dataclass(frozen=True)
class StoreMeta:
    """What must be equal for features to be trained on together.

    dataset: where the samples come from; sides: the rgb and xyz grids have rgb_side^2 and xyz_side^2 patches;
    pairing: the default when they are read; extraction: settings that change the features, by name;
    random_weights: True when a backbone had no checkpoint. ValueError for values that make no sense.
    """

    dataset: str
    rgb_backbone: str
    xyz_backbone: str
    rgb_dim: int
    xyz_dim: int
    rgb_side: int
    xyz_side: int
    pairing: Pairing = "colocated"
    feature_dtype: FeatureDtype = "float16"
    random_weights: bool = False
    extraction: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = (self.dataset, self.rgb_backbone, self.xyz_backbone)
        if not all(isinstance(text, str) for text in (*names, *self.extraction.values())):
            raise ValueError("a name or a setting is no text")
        dims, sides = (self.rgb_dim, self.xyz_dim), (self.rgb_side, self.xyz_side)
        for numbers, largest in ((dims, LARGEST_DIM), (sides, LARGEST_SIDE)):
            if not all(type(n) is int and 0 < n <= largest for n in numbers):
                raise ValueError(f"dims and sides are {dims} and {sides}")
        for value, choices in ((self.pairing, Pairing), (self.feature_dtype, FeatureDtype)):
            if value not in get_args(choices):
                raise ValueError(f"{value!r} is none of {', '.join(get_args(choices))}")
        if not isinstance(self.random_weights, bool):
            raise ValueError(f"random_weights is {self.random_weights!r}")
        paired_rgb(self.pairing, self.rgb_side, self.xyz_side)


class StoredSample(NamedTuple):
    """One sample as stored: rgb (p, Dr), xyz (U, Dx), xyz_row (U,) int64, ascending."""

    rgb: torch.Tensor
    xyz: torch.Tensor
    xyz_row: torch.Tensor


class FeatureStoreWriter:
    """Writes a folder of training features; made by `open`, before the extraction, so that a conflict shows early.

    Other processes of the same run may make one directly, each for other classes.
    """

    def __init__(self, folder: Path, meta: StoreMeta) -> None:
        self.folder, self.meta = folder, meta

    @classmethod
    @contextmanager
    def open(cls, folder: str | Path, meta: StoreMeta) -> Iterator[FeatureStoreWriter]:
        """A writer that has the folder to itself while the block runs.

        OSError when another process has it open; ValueError when it holds features of another kind, which stay
        as they are.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        problem = f"--save_feature_path {folder}: another run is saving features there; use another folder"
        with alone_with(folder / LOCK_NAME, problem):
            writer = cls(folder, meta)
            if (folder / MANIFEST_NAME).exists():
                writer._check_same_kind()
            elif any(folder.glob("*.pt")):
                raise ValueError(f"{folder}: holds the release's .pt features; {OTHER_FOLDER}")
            else:
                writer._write_manifest({})
            sweep_leftovers(folder, deep=False)
            yield writer

    def save(self, class_name: str, i: int, patches: Mapping[Modality, Patches]) -> Path:
        """Write sample `i` of a class atomically and return its path; an old version of the class is withdrawn.

        ValueError when the class's name or the sizes are not those of a folder's, or a value is not finite or
        does not fit float16.
        """
        _check_class(class_name, i + 1)
        path = self.folder / sample_name(class_name, i)
        rgb, xyz, meta = patches["rgb"], patches["xyz"], self.meta
        expected = (meta.rgb_side, meta.rgb_dim, meta.xyz_side, meta.xyz_dim)
        found = (rgb.side, rgb.rows.shape[1], xyz.side, xyz.rows.shape[1])
        if found != expected:
            raise ValueError(
                f"{path}: rgb side, rgb dim, xyz side, xyz dim are {found}, {MANIFEST_NAME} says {expected}"
            )
        row = (xyz.rows != 0).any(dim=1)[xyz.row_of_patch].nonzero().squeeze(1)
        arrays = {
            "rgb": to_storage(rgb.dense(), meta.feature_dtype, path),
            "xyz": to_storage(xyz.rows[xyz.row_of_patch[row]], meta.feature_dtype, path),
            "xyz_row": row.cpu().numpy().astype(np.int32),
        }
        if i == 0:
            with self._others_waiting():
                complete = read_manifest(self.folder)[1]
                self._write_manifest({name: count for name, count in complete.items() if name != class_name})
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays)
        return path

    def complete_class(self, class_name: str, count: int) -> None:
        """Enter a class whose samples 0..count-1 are all saved; until then a reader does not see them."""
        for i in range(count):
            path = self.folder / sample_name(class_name, i)
            if not path.exists():
                raise FileNotFoundError(f"{path}: sample {i} of {count} of {class_name} was not saved")
        _check_class(class_name, count)
        with self._others_waiting():
            self._write_manifest(read_manifest(self.folder)[1] | {class_name: count})

    def has_class(self, class_name: str) -> bool:
        """Whether all samples of a class are there."""
        count = read_manifest(self.folder)[1].get(class_name)
        return count is not None and all(
            (self.folder / sample_name(class_name, i)).exists() for i in range(count)
        )

    def _others_waiting(self) -> AbstractContextManager[None]:
        """While the manifest is changed; the processes of one run fill the folder together."""
        return after_others(self.folder / MANIFEST_LOCK_NAME)

    def _write_manifest(self, classes: Mapping[str, int]) -> None:
        meta = dataclasses.asdict(self.meta)
        write_json(
            self.folder / MANIFEST_NAME,
            {"format": FORMAT_NAME, **meta, "classes": dict(sorted(classes.items()))},
        )

    def _check_same_kind(self) -> None:
        there, here = (dataclasses.asdict(meta) for meta in (read_manifest(self.folder)[0], self.meta))
        different = [
            f"{name} {there[name]!r}, now {here[name]!r}" for name in here if there[name] != here[name]
        ]
        if different:
            raise ValueError(
                f"{self.folder / MANIFEST_NAME}: holds features with {'; '.join(different)}; {OTHER_FOLDER}"
            )


def sample_name(class_name: str, i: int) -> str:
    """The file name of a class's sample; the "_" keeps part + 10 and part1 + 0 apart."""
    return f"{class_name}_{i:03d}.npz"


def to_storage(features: torch.Tensor, dtype: FeatureDtype, path: Path) -> np.ndarray:
    """Features as an array of `dtype`; ValueError names `path` when a value is not finite or too large.

    What is not zero stays so: the loss leaves out patches that hold an exact zero, and float16 would round
    values below 3e-8 to one. They become the smallest float16 of their sign, 6e-8, instead.
    """
    exact = features.detach().float().cpu().numpy()
    if not np.isfinite(exact).all():
        raise ValueError(f"{path}: the features hold NaN or infinity; nothing was written")
    with np.errstate(over="ignore"):
        stored = exact.astype(dtype)
    if not np.isfinite(stored).all():
        raise ValueError(
            f"{path}: features up to {abs(exact).max():.3g} do not fit; use --feature_dtype float32"
        )
    vanished = (stored == 0) & (exact != 0)
    stored[vanished] = np.copysign(np.finfo(dtype).smallest_subnormal, exact[vanished])
    return stored


def read_manifest(folder: str | Path) -> tuple[StoreMeta, dict[str, int]]:
    """What a folder's features are, and the number of samples of each class that is complete.

    ValueError when it is not what a FeatureStoreWriter writes; no file that it names has been looked at then.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        content: dict[str, Any] = json.loads(read_regular(path).decode("utf-8"))
        if content.pop("format") != FORMAT_NAME:
            raise ValueError("another format")
        classes: dict[str, int] = content.pop("classes")
        for name, count in classes.items():
            _check_class(name, count)
        return StoreMeta(**content), classes
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: is no manifest of {FORMAT_NAME} ({in_short(str(error))}); delete the folder and run "
            "main.py --save_feature again"
        ) from error


def _check_class(name: object, count: object) -> None:
    """Raises ValueError for names that would lead out of the folder and for counts that no data set has."""
    if not isinstance(name, str) or not CLASS_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a class")
    if type(count) is not int or not 0 <= count <= LARGEST_COUNT:
        raise ValueError(f"class {name} has {count} samples")


def read_sample(path: Path, meta: StoreMeta) -> StoredSample:
    """One file of ours; CheckpointError when it is damaged or is not what the manifest says."""
    headers = read_numpy_headers(path, SAVE_AGAIN)
    _check_headers(path, headers, meta)
    with decoded(path, ".npz file", SAVE_AGAIN), np.load(path, allow_pickle=False) as file:
        sample = StoredSample(*(torch.from_numpy(file[name]) for name in StoredSample._fields))
    row = sample.xyz_row.long()
    bounded = torch.cat([row.new_tensor([-1]), row, row.new_tensor([meta.xyz_side**2])])
    if not (bounded.diff() > 0).all():
        raise CheckpointError(
            f"{path}: xyz_row does not ascend within 0..{meta.xyz_side**2 - 1}; it is damaged, {SAVE_AGAIN}"
        )
    return sample._replace(xyz_row=row)


def _check_headers(path: Path, headers: Mapping[str, ArrayHeader], meta: StoreMeta) -> None:
    """Raises CheckpointError unless the arrays are, by their headers, as large as the manifest allows."""
    features, row = np.dtype(meta.feature_dtype), np.dtype(np.int32)
    count = next(iter(headers["xyz_row"].shape), 0) if "xyz_row" in headers else 0
    expected = {
        "rgb": ArrayHeader((meta.rgb_side**2, meta.rgb_dim), features),
        "xyz": ArrayHeader((count, meta.xyz_dim), features),
        "xyz_row": ArrayHeader((count,), row),
    }
    if dict(headers) != expected or not 0 <= count <= meta.xyz_side**2:
        found = ", ".join(f"{name} {header.shape} {header.dtype}" for name, header in headers.items())
        raise CheckpointError(
            f"{path}: holds {found or 'nothing'}, which is not what {MANIFEST_NAME} says (rgb "
            f"{expected['rgb'].shape}, xyz up to {(meta.xyz_side**2, meta.xyz_dim)}, {features}); features of "
            f"different backbones are mixed, or it is damaged; {SAVE_AGAIN}"
        )
