"""The data sets on disk: which classes and samples there are, and how one sample is loaded.

Layout (MVTec 3D-AD, and Eyecandies after its preprocessing):
`<root>/<class>/{train,validation,test}/<kind>/{rgb/*.png, xyz/*.tiff, gt/*.png}`, kind `good` or a defect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from utils.image_files import SampleFileError, foreign_images, read_mask, read_rgb, read_xyz
from utils.preprocess.eyecandies import EYECANDIES_CLASSES
from utils.structures import Sample

CLASSES = {
    "mvtec3d": "bagel cable_gland carrot cookie dowel foam peach potato rope tire".split(),
    "eyecandies": list(EYECANDIES_CLASSES),
}
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
GOOD = "good"
FARTHEST_M = 1e4  # what a sensor of parts can't have measured; float32 squares of more overflow at 1e19
Prepared = TypeVar("Prepared")


class DatasetError(ValueError):
    """The data set on disk is not what the README describes; the message names the folder and the remedy."""


@dataclass(frozen=True)
class SampleFiles:
    """The files of one sample; mask is None for good samples, whatever lies in their gt folder."""

    rgb: Path
    xyz: Path
    mask: Path | None
    label: int
    path: str  # of the rgb file, relative to the class folder, '/'-separated


@dataclass(frozen=True)
class BadSample:
    """A sample whose files can't be used, and why."""

    path: str
    reason: str


def find_classes(root: Path, dataset_type: str, wanted: list[str] | None) -> list[str]:
    """The classes to run, in the data set's order; `wanted` None means those that are present.

    Raises DatasetError when the folder, or a wanted class in it, is missing.
    """
    if not root.is_dir():
        raise DatasetError(f"--dataset_path {root}: no such folder; download the data set (README, 'Data')")
    present = sorted(p.name for p in root.iterdir() if (p / "train").is_dir())
    if wanted is None:
        found = [name for name in CLASSES[dataset_type] if name in present]
    else:
        found = list(dict.fromkeys(wanted))
    missing = [name for name in found if name not in present]
    if missing or not found:
        lacks = f"no class folder {', '.join(missing)}" if missing else f"no {dataset_type} class"
        raise DatasetError(
            f"--dataset_path {root} has {lacks}; classes there: {', '.join(present) or 'none'} "
            "(choose with --class_name, or see README, 'Data')"
        )
    return found


def absent_classes(classes: list[str], dataset_type: str) -> list[str]:
    """The data set's classes that are not among `classes`."""
    return [name for name in CLASSES[dataset_type] if name not in classes]


def list_samples(root: Path, class_name: str, split: str) -> list[SampleFiles]:
    """The samples of `split` ("train", "validation" or "test"): kinds by name, files by name.

    Training and validation samples are all good ones. Raises DatasetError when there is none, or when rgb, xyz
    and gt files do not pair.
    """
    folder = root / class_name / split
    kinds = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if split != "test":
        kinds = [kind for kind in kinds if kind == GOOD]
    samples = [sample for kind in kinds for sample in _kind_samples(root / class_name, folder / kind)]
    if not samples:
        raise DatasetError(f"{folder}: no sample (expected {split}/<kind>/rgb/*.png and xyz/*.tiff)")
    return samples


def load_sample(files: SampleFiles, image_size: int) -> Sample:
    """Read one sample at `image_size` pixels a side.

    A point exists where all three coordinates are non-zero; those that are not finite, or farther than
    FARTHEST_M, count as not measured.
    Raises SampleFileError naming the file that can't be used.
    """
    rgb, xyz = read_rgb(files.rgb), read_xyz(files.xyz)
    if rgb.shape != xyz.shape:
        raise SampleFileError(
            files.xyz,
            f"has {xyz.shape[1]}x{xyz.shape[0]} pixels, {files.rgb.name} has {rgb.shape[1]}x{rgb.shape[0]}",
            "the two must show the same pixels",
        )
    remarks = []
    measured = (np.abs(xyz) < FARTHEST_M).all(axis=2)  # False for NaN
    if not measured.all():
        remarks.append(
            f"{np.count_nonzero(~measured)} pixels with NaN, infinite or absurdly far points count as not measured"
        )
        xyz = np.where(measured[..., None], xyz, np.float32(0))
    points, pixel_index = existing_points(resize_nearest(xyz, image_size))
    return Sample(
        image=normalised_image(rgb, image_size),
        points=points,
        pixel_index=pixel_index,
        mask=_load_mask(files, rgb.shape[:2], image_size),
        label=files.label,
        path=files.path,
        remarks=tuple(remarks),
    )


def normalised_image(rgb: np.ndarray, image_size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (3, S, S) float32: PIL's antialiased bicubic resize, ImageNet's mean and std."""
    resized = Image.fromarray(rgb).resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = (np.asarray(resized, dtype=np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resize_nearest(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W, C) -> (S, S, C) by the index rule of torch's interpolate(mode="nearest")."""
    rows, columns = (_nearest_index(side, size) for side in image.shape[:2])
    return image[rows[:, None], columns]


def existing_points(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S, S, 3) -> points (N, 3) whose three coordinates are all non-zero, and their row-major pixels (N,)."""
    flat = xyz.reshape(-1, 3)
    pixel_index = np.flatnonzero((flat != 0).all(axis=1))
    return np.ascontiguousarray(flat[pixel_index]), pixel_index


class SampleDataset(Dataset, Generic[Prepared]):
    """Loads and prepares the given samples; one that can't be read comes out as BadSample.

    `prepare` runs where the sample is loaded, in the loader's workers if there are any.
    """

    def __init__(
        self, files: list[SampleFiles], image_size: int, prepare: Callable[[Sample], Prepared]
    ) -> None:
        self.files = files
        self.image_size = image_size
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Prepared | BadSample:
        try:
            return self.prepare(load_sample(self.files[i], self.image_size))
        except SampleFileError as error:
            return BadSample(self.files[i].path, str(error))


def stored_image(files: SampleFiles) -> np.ndarray:
    """The sample's image at its stored size, (H, W, 3) uint8."""
    return read_rgb(files.rgb)


def stored_mask(files: SampleFiles, shape: tuple[int, int]) -> np.ndarray:
    """The sample's ground truth at its stored size, (H, W) bool; all False for good samples.

    Raises SampleFileError when its size differs from `shape`, that of the image.
    """
    if files.mask is None:
        return np.zeros(shape, dtype=bool)
    mask = read_mask(files.mask)
    if mask.shape != shape:
        raise SampleFileError(
            files.mask, f"has shape {mask.shape}, the image {shape}", "they must show the same pixels"
        )
    return mask > 0


def _kind_samples(class_folder: Path, folder: Path) -> list[SampleFiles]:
    good = folder.name == GOOD
    rgb, xyz = _by_stem(folder / "rgb", ".png"), _by_stem(folder / "xyz", ".tiff")
    _check_pairs(folder, {"rgb": rgb, "xyz": xyz} if good else {"rgb": rgb, "xyz": xyz, "gt": _masks(folder)})
    masks = {} if good else _masks(folder)
    return [
        SampleFiles(
            rgb=rgb[stem],
            xyz=xyz[stem],
            mask=masks.get(stem),
            label=0 if good else 1,
            path=rgb[stem].relative_to(class_folder).as_posix(),
        )
        for stem in sorted(rgb)
    ]


def _masks(folder: Path) -> dict[str, Path]:
    return _by_stem(folder / "gt", ".png")


def _by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    visible = [p for p in folder.iterdir() if not p.name.startswith(".")]
    foreign = foreign_images(folder, suffix)
    if foreign:
        raise DatasetError(
            f"{foreign[0]}: images here must end in {suffix}; rename or convert it, or move it away"
        )
    return {p.stem: p for p in visible if p.suffix == suffix}


def _check_pairs(folder: Path, files: dict[str, dict[str, Path]]) -> None:
    every = set().union(*files.values())
    for name, stems in files.items():
        lacking = sorted(every - set(stems))
        if lacking:
            raise DatasetError(
                f"{folder}: {name}/ lacks {', '.join(lacking[:5])}{' ...' if len(lacking) > 5 else ''}, which "
                f"{', '.join(other for other in files if lacking[0] in files[other])} has; every sample needs "
                f"{', '.join(files)} files of one name"
            )


def _load_mask(files: SampleFiles, shape: tuple[int, int], image_size: int) -> np.ndarray:
    mask = Image.fromarray(stored_mask(files, shape).astype(np.uint8))
    return np.asarray(mask.resize((image_size, image_size), Image.Resampling.NEAREST)) > 0


def _nearest_index(old: int, new: int) -> np.ndarray:
    # float32 as in torch: 25/14 * 14 may come out just below 25, and the index with it
    scaled = np.arange(new, dtype=np.float32) * np.float32(old / new)
    return np.minimum(scaled.astype(np.int64), old - 1)
