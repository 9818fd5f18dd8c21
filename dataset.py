"""The data sets on disk: which classes and samples there are, and how one sample is loaded.

The layout of MVTec 3D-AD, and of Eyecandies after its preprocessing:
`<root>/<class>/{train,validation,test}/<kind>/{rgb/*.png, xyz/*.tiff, gt/*.png}`, kind `good` or a defect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from utils.class_names import EYECANDIES_CLASSES
from utils.console import one_line
from utils.image_files import SampleFileError, foreign_images, image_shape, read_mask, read_rgb, read_xyz
from utils.plausibility import (
    MILLIMETRES_FROM,
    guess_unit,
    looks_raw,
    measured_points,
    silhouette_disagreement,
)
from utils.structures import Sample, SampleFiles

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
GOOD = "good"
LOOKED_AT = 5  # samples of each kind, before the work
LARGEST_DEFECT = (
    0.5  # share of an image beyond which a mask looks inverted; most defects take less than a tenth
)
LONGEST_NAME = 200  # bytes of a class's name, which names files
FARTHEST_M = 1e4  # what a sensor of parts can't have measured; float32 squares of more overflow at 1e19
Picture = Path | str | np.ndarray  # a file, or what it would hold


class DatasetError(ValueError):
    """The data set on disk is not what the README describes; the message names the folder and the remedy."""


def mvtec_samples(class_folder: Path, split: str) -> list[SampleFiles]:
    """The samples of a class in the layout of MVTec 3D-AD: kinds by name, files by name.

    Training and validation samples are all good ones. Raises DatasetError when rgb, xyz and gt do not pair.
    """
    folder = class_folder / split
    kinds = sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if split != "test":
        kinds = [kind for kind in kinds if kind == GOOD]
    return [sample for kind in kinds for sample in _kind_samples(class_folder, folder / kind)]


@dataclass(frozen=True)
class DatasetSpec:
    """One `--dataset_type`: its classes in the order of its tables, and how the samples of a class are found.

    find_samples(class_folder, split) lists the samples of "train", "validation" or "test", in order.
    """

    classes: tuple[str, ...]
    find_samples: Callable[[Path, str], list[SampleFiles]] = mvtec_samples


DATASETS = {
    "mvtec3d": DatasetSpec(
        tuple("bagel cable_gland carrot cookie dowel foam peach potato rope tire".split())
    ),
    "eyecandies": DatasetSpec(EYECANDIES_CLASSES),
}


def find_classes(root: Path, dataset: DatasetSpec, wanted: list[str] | None) -> list[str]:
    """The classes to run, in the data set's order; `wanted` None means those that are present.

    Raises DatasetError when the folder, or a wanted class in it, is missing, or its name is not one printable line.
    """
    if not root.is_dir():
        raise DatasetError(f"--dataset_path {root}: no such folder; download the data set (README, 'Data')")
    present = sorted(p.name for p in root.iterdir() if (p / "train").is_dir())
    found = list(dict.fromkeys(wanted or [name for name in dataset.classes if name in present]))
    missing = [name for name in found if name not in present]
    if missing or not found:
        lacks = f"no class folder {', '.join(missing)}" if missing else "no class of the --dataset_type"
        raise DatasetError(
            f"--dataset_path {root} has {lacks}; classes there: {', '.join(present) or 'none'} "
            "(choose with --class_name, or see README, 'Data')"
        )
    check_utf8(root)
    if long := [name for name in found if len(name.encode()) > LONGEST_NAME]:
        raise DatasetError(
            f"--dataset_path {root}: the class folder {long[0]} has too long a name; rename it"
        )
    if odd := [name for name in found if not name.isprintable()]:
        raise DatasetError(
            f"--dataset_path {root}: the class folder {odd[0]!r} holds a line break or the like, which no table can "
            "show; rename it"
        )
    return found


def check_utf8(path: Path) -> None:
    """Raises DatasetError for a path that no result file could name."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DatasetError(f"{one_line(str(path))}: its name is not UTF-8; rename it") from error


def list_samples(
    class_folder: Path, split: str, find_samples: Callable[[Path, str], list[SampleFiles]] = mvtec_samples
) -> list[SampleFiles]:
    """The samples of `split` ("train", "validation" or "test") of a class.

    Raises DatasetError when there is none, or when rgb, xyz and gt files do not pair.
    """
    samples = find_samples(class_folder, split)
    if not samples:
        raise DatasetError(
            f"{class_folder / split}: no sample (expected {split}/<kind>/rgb/*.png and xyz/*.tiff)"
        )
    return samples


def load_sample(rgb: Picture, xyz: Picture, image_size: int) -> Sample:
    """One sample at `image_size` pixels a side, from its files or from what they would hold.

    rgb (H, W, 3) uint8, xyz (H, W, 3) float in metres, (0, 0, 0) = not measured. A point exists where all three
    coordinates are non-zero; those that are not finite, or farther than FARTHEST_M, count as not measured.
    Raises SampleFileError naming the file, or ValueError naming the array, that can't be used; a cloud in millimetres
    can't: it would look like one of the most normal.
    """
    image = rgb if isinstance(rgb, np.ndarray) else read_rgb(rgb)
    cloud = xyz if isinstance(xyz, np.ndarray) else read_xyz(xyz)
    _check_arrays(rgb, image, xyz, cloud)
    remarks = []
    measured = np.all(np.abs(cloud) < FARTHEST_M, axis=2)  # False for NaN
    if not measured.all():
        remarks.append(
            f"{np.count_nonzero(~measured)} pixels with NaN, infinite or absurdly far points count as not measured"
        )
        cloud = np.where(measured[..., None], cloud, np.float32(0))
    points, pixel_index = existing_points(resize_nearest(cloud.astype(np.float32, copy=False), image_size))
    _check_distance(xyz, points)
    return Sample(normalised_image(image, image_size), points, pixel_index, tuple(remarks))


def check_plausible(samples: Sequence[SampleFiles]) -> list[str]:
    """Look at a few samples of each kind of a class before the work on it; returns what is odd about them.

    Raises DatasetError when those of a kind are in millimetres, or look as if they had not been preprocessed: all
    scores would be wrong, and look right. What can't be read is left to the run, which reports it.
    """
    kinds: dict[Path, list[SampleFiles]] = {}
    for files in samples:
        kinds.setdefault(files.rgb.parents[1], []).append(files)
    return [text for folder, of_kind in kinds.items() for text in _check_kind(folder, of_kind)]


class Pair(NamedTuple):
    """The image and the cloud of one part, files or arrays."""

    rgb: Picture
    xyz: Picture


def as_parts(samples: Iterable[Any]) -> list[Any]:
    """The samples as objects with `rgb` and `xyz`; plain pairs become such."""
    return [sample if hasattr(sample, "rgb") else Pair(*sample) for sample in samples]


def part_names(parts: Sequence[Any]) -> list[str]:
    """What each part is called in reports: its `name`, or its image's, or its number."""
    return [getattr(part, "name", None) or _part_name(i, part.rgb) for i, part in enumerate(parts)]


def load_part(part: Any, image_size: int) -> Sample:
    """`load_sample` of an object with `rgb` and `xyz`."""
    return load_sample(part.rgb, part.xyz, image_size)


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


def stored_mask(files: SampleFiles) -> np.ndarray | None:
    """The sample's ground truth at its stored size, (H, W) bool; all False for good samples, None where unknown.

    Raises SampleFileError when its size is not that of the image.
    """
    if files.mask is None and files.label != 0:
        return None
    shape = image_shape(files.rgb)
    if files.mask is None:
        return np.zeros(shape, dtype=bool)
    mask = read_mask(files.mask)
    if mask.shape != shape:
        raise SampleFileError(
            files.mask, f"has shape {mask.shape}, the image {shape}", "they must show the same pixels"
        )
    return mask > 0


def resized_mask(files: SampleFiles, image_size: int) -> np.ndarray | None:
    """The sample's ground truth as the model's maps are, (S, S) bool, nearest; None where unknown.

    Raises SampleFileError.
    """
    stored = stored_mask(files)
    if stored is None:
        return None
    mask = Image.fromarray(stored.astype(np.uint8))
    return np.asarray(mask.resize((image_size, image_size), Image.Resampling.NEAREST)) > 0


def _check_kind(folder: Path, samples: Sequence[SampleFiles]) -> list[str]:
    step = max(1, len(samples) // LOOKED_AT)
    looked_at = samples[::step]
    views = [view for files in looked_at if (view := _readable(files)) is not None]
    if not views:
        return []
    try:
        unit = guess_unit(cloud for _, _, cloud in views)
    except ValueError as error:
        raise DatasetError(f"{folder}: {error}") from error
    if unit == "mm":
        raise DatasetError(
            f"{folder}: its points are in millimetres, metres are expected; preprocess the raw data with --unit mm"
        )
    raw = [(path, reason) for path, _, cloud in views if (reason := looks_raw(cloud)) is not None]
    if len(raw) > len(views) / 2:
        raise DatasetError(
            f"{folder}: does not look preprocessed ({raw[0][0]}: {raw[0][1]}); run utils/preprocessing.py on the data "
            "set, or add --unchecked if the clouds show nothing but the part"
        )
    odd = [(path, text) for path, rgb, cloud in views if (text := silhouette_disagreement(rgb, cloud))]
    odd += [(files.path, text) for files in looked_at if (text := _odd_mask(files))]
    return [f"{path}: {text}" for path, text in odd]


def _odd_mask(files: SampleFiles) -> str | None:
    """What is odd about a defect's mask that can be read, or None."""
    if files.mask is None:
        return None
    try:
        share = float((read_mask(files.mask) > 0).mean())
    except SampleFileError:
        return None
    if share == 0:
        return "its mask marks no defect"
    return f"its mask marks {share:.0%} of the image; is it inverted?" if share > LARGEST_DEFECT else None


def _check_distance(xyz: Picture, points: np.ndarray) -> None:
    """Raises SampleFileError or ValueError where the points (N, 3) can't be in metres."""
    if not len(points):
        return
    distance = float(np.median(np.linalg.norm(points.astype(np.float64), axis=1)))
    if distance <= MILLIMETRES_FROM:
        return
    problem = f"its points lie {distance:.4g} m from the sensor (median), so they are not in metres"
    if isinstance(xyz, np.ndarray):
        raise ValueError(f"the xyz array: {problem}")
    raise SampleFileError(xyz, problem, "preprocess the raw data with --unit mm")


def _readable(files: SampleFiles) -> tuple[str, np.ndarray, np.ndarray] | None:
    """Path, image and cloud; None where they can't be used, or the cloud has no point."""
    try:
        rgb, cloud = read_rgb(files.rgb), read_xyz(files.xyz)
    except SampleFileError:
        return None
    usable = rgb.shape == cloud.shape and measured_points(cloud).any()
    return (files.path, rgb, cloud) if usable else None


def _part_name(number: int, rgb: Picture) -> str:
    return f"sample {number}" if isinstance(rgb, np.ndarray) else str(rgb)


def _kind_samples(class_folder: Path, folder: Path) -> list[SampleFiles]:
    good, has_truth = folder.name == GOOD, (folder / "gt").is_dir()
    files = {"rgb": _by_stem(folder / "rgb", ".png"), "xyz": _by_stem(folder / "xyz", ".tiff")}
    masks = _by_stem(folder / "gt", ".png") if has_truth and not good else {}
    _check_pairs(folder, files if good or not has_truth else {**files, "gt": masks})
    label = 0 if good else 1 if has_truth else None
    return [
        SampleFiles(
            rgb=files["rgb"][stem],
            xyz=files["xyz"][stem],
            mask=masks.get(stem),
            label=label,
            path=files["rgb"][stem].relative_to(class_folder).as_posix(),
        )
        for stem in sorted(files["rgb"])
    ]


def _by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    visible = [p for p in folder.iterdir() if not p.name.startswith(".")]
    for path in visible:
        check_utf8(path)
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


def _check_arrays(rgb: Picture, image: np.ndarray, xyz: Picture, cloud: np.ndarray) -> None:
    """Raises ValueError unless these are the pixels of one view; files are named, arrays called rgb and xyz."""
    names = ["the rgb array" if isinstance(rgb, np.ndarray) else str(rgb)]
    names.append("the xyz array" if isinstance(xyz, np.ndarray) else str(xyz))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"{names[0]}: has shape {image.shape} of {image.dtype}, expected (height, width, 3) of uint8"
        )
    if cloud.ndim != 3 or cloud.shape[2] != 3 or cloud.dtype.kind != "f":
        raise ValueError(
            f"{names[1]}: has shape {cloud.shape} of {cloud.dtype}, expected (height, width, 3) of float32"
        )
    if image.shape != cloud.shape:
        raise ValueError(
            f"{names[1]}: has {cloud.shape[1]}x{cloud.shape[0]} pixels, {names[0]} has "
            f"{image.shape[1]}x{image.shape[0]}; the two must show the same pixels"
        )


def _nearest_index(old: int, new: int) -> np.ndarray:
    # float32 as in torch: 25/14 * 14 may come out just below 25, and the index with it
    scaled = np.arange(new, dtype=np.float32) * np.float32(old / new)
    return np.minimum(scaled.astype(np.int64), old - 1)
