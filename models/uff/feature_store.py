"""UFF's training features on disk (datasets/patch_lib): a small file for each sample and one index.

A file `<class>_<number>.npz` holds `rgb` (p, Dr), each patch once, and `xyz` (U, Dx), the rows of the larger
grid that are not all zero, with `xyz_row` (U,), their row-major positions. `index.json` says what the
features are: a StoreMeta, and how many samples each class has. Which rgb patch stands beside which xyz
patch is no matter of storage; it follows from the grids (`paired_rgb`).
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from utils.files import atomic_path, write_json
from utils.structures import Modality, Patches

Pairing = Literal["colocated", "scrambled"]
FeatureDtype = Literal["float16", "float32"]

INDEX_NAME = "index.json"
FORMAT_NAME = "m3dm-uff-features-1"
OTHER_FOLDER = "delete the folder or choose another --save_feature_path"


@dataclass(frozen=True)
class StoreMeta:
    """What must be equal for features to be trained on together.

    sides: the rgb and xyz grids have rgb_side^2 and xyz_side^2 patches; pairing: the default when they are
    read; protocol: settings of the extraction that change the features, by name; random_weights: True when
    a backbone had no checkpoint.
    """

    rgb_backbone: str
    xyz_backbone: str
    rgb_dim: int
    xyz_dim: int
    rgb_side: int
    xyz_side: int
    pairing: Pairing = "colocated"
    feature_dtype: FeatureDtype = "float16"
    random_weights: bool = False
    protocol: Mapping[str, str] = field(default_factory=dict)


class StoredSample(NamedTuple):
    """One sample as stored: rgb (p, Dr), xyz (U, Dx), xyz_row (U,) int64, ascending."""

    rgb: torch.Tensor
    xyz: torch.Tensor
    xyz_row: torch.Tensor


def paired_rgb(pairing: Pairing, rgb_side: int, xyz_side: int) -> torch.Tensor:
    """The rgb patch beside each xyz patch, (xyz_side^2,) int64.

    "colocated" is nearest upsampling, which AdaptiveAvgPool2d does for whole ratios; "scrambled" is how the
    released code saved its training features: with p = rgb_side^2 patches and f = xyz_side^2 / p, xyz row
    k*p + j stands beside rgb patch (f*j + k) mod p. ValueError unless the ratio of the sides is whole.
    """
    if xyz_side % rgb_side:
        raise ValueError(f"an xyz grid of side {xyz_side} is no multiple of the rgb grid's {rgb_side}")
    if pairing == "scrambled":
        num_rgb, num_xyz = rgb_side**2, xyz_side**2
        row = torch.arange(num_xyz)
        return (num_xyz // num_rgb * (row % num_rgb) + row // num_rgb) % num_rgb
    axis = torch.arange(xyz_side) // (xyz_side // rgb_side)
    return (axis[:, None] * rgb_side + axis).flatten()


class FeatureStoreWriter:
    """Writes a folder of training features; open it before the extraction, so that a conflict shows early."""

    def __init__(self, folder: str | Path, *, meta: StoreMeta) -> None:
        """ValueError when the folder holds features of another kind; no file is touched then."""
        if meta.feature_dtype not in get_args(FeatureDtype):
            raise ValueError(f"--feature_dtype {meta.feature_dtype}: choose from {get_args(FeatureDtype)}")
        paired_rgb(meta.pairing, meta.rgb_side, meta.xyz_side)
        self.folder, self.meta = Path(folder), meta
        if self._index_path.exists():
            self._check_same_kind()
        elif any(self.folder.glob("*.pt")):
            raise ValueError(f"{folder}: holds the release's .pt features; {OTHER_FOLDER}")
        else:
            self._write_index({})

    def save(self, class_name: str, i: int, patches: Mapping[Modality, Patches]) -> Path:
        """Write sample `i` of a class atomically and return its path.

        ValueError when sizes differ from the index's, or a value is not finite or does not fit float16.
        """
        path = self.folder / sample_name(class_name, i)
        rgb, xyz, meta = patches["rgb"], patches["xyz"], self.meta
        expected = (meta.rgb_side, meta.rgb_dim, meta.xyz_side, meta.xyz_dim)
        found = (rgb.side, rgb.rows.shape[1], xyz.side, xyz.rows.shape[1])
        if found != expected:
            raise ValueError(
                f"{path}: rgb side, rgb dim, xyz side, xyz dim are {found}, the index says {expected}"
            )
        row = (xyz.rows != 0).any(dim=1)[xyz.row_of_patch].nonzero().squeeze(1)
        arrays = {
            "rgb": to_storage(rgb.dense(), meta.feature_dtype, path),
            "xyz": to_storage(xyz.rows[xyz.row_of_patch[row]], meta.feature_dtype, path),
            "xyz_row": row.cpu().numpy().astype(np.int32),
        }
        with atomic_path(path) as temporary:
            np.savez(temporary, **arrays)
        return path

    def finish_class(self, class_name: str, count: int) -> None:
        """Enter a class whose samples 0..count-1 are all saved; until then a reader does not see them."""
        for i in range(count):
            path = self.folder / sample_name(class_name, i)
            if not path.exists():
                raise FileNotFoundError(f"{path}: sample {i} of {count} of {class_name} was not saved")
        classes = read_index(self.folder)[1]
        self._write_index(classes | {class_name: count})

    def has_class(self, class_name: str) -> bool:
        """Whether all samples of a class are there."""
        return class_name in read_index(self.folder)[1]

    @property
    def _index_path(self) -> Path:
        return self.folder / INDEX_NAME

    def _write_index(self, classes: Mapping[str, int]) -> None:
        meta = dataclasses.asdict(self.meta)
        write_json(self._index_path, {"format": FORMAT_NAME, **meta, "classes": dict(classes)})

    def _check_same_kind(self) -> None:
        there, here = (dataclasses.asdict(meta) for meta in (read_index(self.folder)[0], self.meta))
        different = [
            f"{name} {there[name]!r}, now {here[name]!r}" for name in here if there[name] != here[name]
        ]
        if different:
            raise ValueError(
                f"{self._index_path}: holds features with {'; '.join(different)}; {OTHER_FOLDER}"
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


def read_index(folder: str | Path) -> tuple[StoreMeta, dict[str, int]]:
    """What a folder's features are, and the number of samples of each class that is complete."""
    path = Path(folder) / INDEX_NAME
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if index.pop("format") != FORMAT_NAME:
            raise ValueError("another format")
        classes = index.pop("classes")
        meta = StoreMeta(**index)
        _check_index(meta, classes)
        return meta, classes
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: is no index of {FORMAT_NAME} ({error}); delete the folder and run main.py --save_feature again"
        ) from error


def _check_index(meta: StoreMeta, classes: Any) -> None:
    """Raises ValueError for what no writer has written."""
    if not isinstance(classes, dict) or not all(type(n) is int and n >= 0 for n in classes.values()):
        raise ValueError(f"classes are {classes}, not names with their counts")
    numbers = (meta.rgb_dim, meta.xyz_dim, meta.rgb_side, meta.xyz_side)
    if not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError(f"dims and sides are {numbers}")
    if meta.pairing not in get_args(Pairing):
        raise ValueError(f"pairing is {meta.pairing!r}")
    paired_rgb(meta.pairing, meta.rgb_side, meta.xyz_side)


def read_sample(path: str | Path, meta: StoreMeta) -> StoredSample:
    """One file of ours; ValueError when it is damaged or is not what the index says."""
    try:
        with np.load(path, allow_pickle=False) as file:
            sample = StoredSample(*(torch.from_numpy(file[name]) for name in ("rgb", "xyz", "xyz_row")))
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
        raise damaged(path, error) from error
    rgb_shape, xyz_dim = (meta.rgb_side**2, meta.rgb_dim), meta.xyz_dim
    if tuple(sample.rgb.shape) != rgb_shape or tuple(sample.xyz.shape) != (len(sample.xyz_row), xyz_dim):
        raise ValueError(
            f"{path}: rgb {tuple(sample.rgb.shape)} and xyz {tuple(sample.xyz.shape)} are not the {rgb_shape} and "
            f"(..., {xyz_dim}) of {INDEX_NAME}; features of different backbones are mixed, save them anew"
        )
    if not (sample.rgb.is_floating_point() and sample.xyz.is_floating_point()):
        raise damaged(path, f"features of type {sample.rgb.dtype} and {sample.xyz.dtype}")
    row = sample.xyz_row
    bounded = torch.cat([row.new_tensor([-1]), row, row.new_tensor([meta.xyz_side**2])])
    if row.is_floating_point() or not (bounded.diff() > 0).all():
        raise damaged(path, f"xyz_row does not ascend within 0..{meta.xyz_side**2 - 1}")
    return sample._replace(xyz_row=row.long())


def damaged(path: str | Path, reason: object) -> ValueError:
    """The error for a features file that cannot be read."""
    return ValueError(
        f"{path}: cannot be read, it is cut off or damaged ({reason}); run main.py --save_feature for its class again"
    )
