"""Preprocess MVTec 3D-AD: remove the background plane, pad to squares, keep the largest cluster of points.

    python utils/preprocessing.py datasets/mvtec3d/                      # in place
    python utils/preprocessing.py datasets/mvtec3d/ --output_dir DIR     # into a copy

A run that was cut is repeated with the same command; samples that are done are left alone. The result of a
sample depends on the parameters, the seed, and its own files and path only. Nothing is written before a look at
samples of each class: which unit they are in, and that they were not preprocessed before. Samples that can't be used,
are in another unit, look preprocessed or show no part are named and left as they are, and the exit status is then 1.

With --output_dir a sample whose files changed since, by size and time, is preprocessed anew; one that is gone is
named. In place nobody can tell new originals from damaged results: a result that changed stops the run.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.console import print_anything
from utils.files import stamp
from utils.flags import named_path, positive
from utils.image_files import (
    SampleFileError,
    encode_png,
    encode_xyz,
    foreign_images,
    read_mask,
    read_rgb,
    read_xyz,
)
from utils.plausibility import Unit, guess_unit, looks_preprocessed, misfit_of_unit
from utils.preprocess.clustering import dbscan
from utils.preprocess.driver import (
    Converted,
    Preprocessing,
    Summary,
    check_target,
    exit_status,
    preprocess,
    refuse_shared_files,
)
from utils.preprocess.record import copy_file, is_bookkeeping, read_record
from utils.preprocess.sample import Parameters, in_metres, pad_to_square, preprocess_sample
from utils.preprocess.suggest import suggest_distances

SPLITS = ("train", "validation", "test")
SUFFIXES = {"xyz": ".tiff", "rgb": ".png", "gt": ".png"}
UNITS = {"m": "metres", "mm": "millimetres"}
LOOKED_AT, LOOKED_AT_A_CLASS = 32, 3  # clouds, at least: all classes together, each class
RESULT_VERSION = 1  # raise when the same parameters give other files: one data set is not to mix both


def preprocess_dataset(
    root: Path,
    target: Path,
    parameters: Parameters,
    num_workers: int,
    unit: Unit | None = None,
    force: bool = False,
    progress: bool = True,
) -> Summary:
    """Preprocess all samples under `root` into `target`, which may be `root` itself.

    unit: that of the points in `root`, None = that of the samples done before, else judged by the points; the result
    is in metres. force: preprocess what looks preprocessed as well. Raises FileNotFoundError when there is no sample,
    ValueError when `target` lies inside `root`, links make two files one, the unit is not certain or the data look
    preprocessed, RecordError when `target` holds results of other parameters, and OSError when it can't be written.
    """
    root, target = root.resolve(), target.resolve()
    check_target(target)
    if root in target.parents:
        raise ValueError(
            f"--output_dir {target}: lies inside the data set {root}; choose a folder outside it"
        )
    names = find_samples(root)
    _refuse_links(root, target, names)
    header, entries = read_record(target)
    if not entries and not force:
        _refuse_preprocessed(root, spread(names))
    unit = unit or (header.get("unit", "m") if entries else _unit_of(root, spread(names)))
    if progress:
        print(f"{root}: points in {UNITS[unit]}" + (", converted to metres" if unit == "mm" else ""))
    dbscan(np.zeros((1, 3)), eps=1.0, min_points=1)  # compiles here once, not in every worker
    recorded = {"version": RESULT_VERSION, **asdict(parameters), "unit": unit}
    convert_one = partial(convert, root, parameters, unit, force)
    job = Preprocessing(names, convert_one, partial(stamps, root), recorded, in_place=target == root)
    summary = preprocess(job, target, num_workers, progress)
    if target != root:
        _copy_other_files(root, target, names)
    summary.errors.extend(_foreign_images(root))
    return summary


def find_samples(root: Path) -> list[str]:
    """Names of all samples under `root`, sorted, as cable_gland/test/cut/003: folder and stem.

    A sample is there as soon as one of its files is. Raises FileNotFoundError when there is none.
    """
    names = {
        path.parent.parent.joinpath(path.stem).relative_to(root).as_posix()
        for split in SPLITS
        for kind, suffix in SUFFIXES.items()
        for path in root.glob(f"*/{split}/*/{kind}/*{suffix}")
        if not path.name.startswith(".")
    }
    if not names:
        one_class = any((root / split).is_dir() for split in SPLITS)
        remedy = f"it looks like one class: name {root.parent}" if one_class else "see README, 'Data'"
        raise FileNotFoundError(f"{root}: no samples such as <class>/train/good/xyz/000.tiff in it; {remedy}")
    return sorted(names)


def sample_files(name: str) -> dict[str, str]:
    """The three files of a sample relative to the data set, by kind (xyz, rgb, gt)."""
    folder, stem = name.rsplit("/", 1)
    return {kind: f"{folder}/{kind}/{stem}{suffix}" for kind, suffix in SUFFIXES.items()}


def stamps(root: Path, name: str) -> list[str]:
    """Name, size and time of each of the sample's three files, "" for one that is not there."""
    return [stamp(root / file) for file in sample_files(name).values()]


def convert(root: Path, parameters: Parameters, unit: Unit, force: bool, name: str) -> Converted:
    """New contents of the sample's files, and the report on it. Raises SampleFileError."""
    files, source = sample_files(name), stamps(root, name)
    cloud, image = read_xyz(root / files["xyz"]), read_rgb(root / files["rgb"])
    _check_plausible(root / files["xyz"], cloud, unit, force)
    cloud = in_metres(cloud, unit)
    mask = read_mask(root / files["gt"]) if (root / files["gt"]).exists() else None
    for kind, pixels in (("rgb", image), ("gt", mask)):
        if pixels is not None and pixels.shape[:2] != cloud.shape[:2]:
            raise SampleFileError(
                root / files[kind], f"has {pixels.shape[:2]} pixels, its xyz {cloud.shape[:2]}"
            )
    rng = np.random.default_rng([parameters.seed, *os.fsencode(name)])
    cloud, image, report = preprocess_sample(cloud, image, parameters, rng)
    contents = {files["xyz"]: encode_xyz(cloud), files["rgb"]: encode_png(image)}
    if mask is not None:
        contents[files["gt"]] = encode_png(pad_to_square(mask))
    return Converted(contents, report._asdict(), source)


def _check_plausible(path: Path, cloud: np.ndarray, unit: Unit, force: bool) -> None:
    """Raises SampleFileError for a cloud (H, W, 3) that is clearly in the other unit or, unless `force`, looks done."""
    if problem := misfit_of_unit(cloud, unit):
        raise SampleFileError(path, problem, f"convert it to {UNITS[unit]}, as the others are")
    if not force and looks_preprocessed(cloud):
        problem = "is square without background at the border, as after preprocessing"
        raise SampleFileError(path, problem, "restore the original file, or add --force")


def spread(names: list[str]) -> list[str]:
    """Some of the samples, of each class the same number where it has so many, evenly spaced."""
    classes: dict[str, list[str]] = defaultdict(list)
    for name in names:
        classes[name.split("/")[0]].append(name)
    count = max(LOOKED_AT_A_CLASS, -(-LOOKED_AT // max(1, len(classes))))
    return [
        members[i * len(members) // min(count, len(members))]
        for members in classes.values()
        for i in range(min(count, len(members)))
    ]


def _clouds(root: Path, names: list[str]) -> Iterator[np.ndarray]:
    """The clouds of the samples that can be read and have a point, as they are; the others are reported later."""
    for name in names:
        try:
            cloud = read_xyz(root / sample_files(name)["xyz"])
        except SampleFileError:
            continue
        if cloud.any():
            yield cloud


def _refuse_preprocessed(root: Path, names: list[str]) -> None:
    """Raises ValueError when most of the samples look preprocessed."""
    looks = [looks_preprocessed(cloud) for cloud in _clouds(root, names)]
    if sum(looks) > len(looks) / 2:
        raise ValueError(
            f"{root}: {sum(looks)} of {len(looks)} samples looked at are square without background at the border, as "
            "after preprocessing; unpack the original data, or preprocess them all the same with --force"
        )


def _unit_of(root: Path, names: list[str]) -> Unit:
    """The unit that the samples show. Raises ValueError."""
    try:
        return guess_unit(_clouds(root, names))
    except ValueError as error:
        raise ValueError(f"{root}: {error}") from error


def _refuse_links(root: Path, target: Path, names: list[str]) -> None:
    """Raises ValueError when links would let a sample overwrite another one, or an original that is to stay."""
    files = [file for name in names for file in sample_files(name).values()]
    originals = [root / file for file in files] if target != root else []
    refuse_shared_files((target / file for file in files), originals)


def _foreign_images(root: Path) -> list[str]:
    """An error for each image that is left alone because of its name."""
    return [
        f"{path}: left alone, images here must end in {suffix}; rename or convert it and run again"
        for split in SPLITS
        for kind, suffix in SUFFIXES.items()
        for folder in sorted(root.glob(f"*/{split}/*/{kind}"))
        for path in foreign_images(folder, suffix)
    ]


def _copy_other_files(root: Path, target: Path, names: list[str]) -> None:
    """Copy calibration, licence and whatever else is no sample's file, unless it is there with size and time."""
    own = {file for name in names for file in sample_files(name).values()}
    for source in root.rglob("*"):
        relative = source.relative_to(root)
        if not source.is_file() or relative.as_posix() in own or is_bookkeeping(source):
            continue
        copy = target / relative
        if stamp(copy) != stamp(source):
            copy_file(source, copy)


def get_args_parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("dataset_path", type=named_path, help="folder of the data set, with one folder a class")
    add("--output_dir", type=named_path, help="write there instead of in place; other files are copied")
    add("--num_workers", type=positive, default=os.cpu_count(), help="processes (default: all cores)")
    add(
        "--unit",
        choices=("auto", *UNITS),
        default="auto",
        help="of the points as they are; the result is in metres (default: judged by their distances)",
    )
    add("--force", action="store_true", help="preprocess samples that look preprocessed as well")
    add("--suggest", action="store_true", help="only suggest distances for these data; nothing is written")
    for item in fields(Parameters):
        text = f"{item.metadata['help']} (default {item.default})"
        add(f"--{item.name}", type=type(item.default), default=item.default, help=text)
    return parser


def _preprocess(args: argparse.Namespace) -> Summary:
    return preprocess_dataset(
        args.dataset_path,
        args.output_dir or args.dataset_path,
        Parameters(**{item.name: getattr(args, item.name) for item in fields(Parameters)}),
        args.num_workers,
        None if args.unit == "auto" else args.unit,
        args.force,
    )


def suggest(root: Path, unit: Unit | None) -> None:
    """Print distances that suit the raw clouds under `root`. Raises ValueError when they show no background."""
    names = spread(find_samples(root))
    unit = unit or _unit_of(root, names)
    clouds = (in_metres(cloud, unit) for cloud in _clouds(root, names))
    distances = suggest_distances(clouds, Parameters())
    print(" ".join(f"--{name} {value:g}" for name, value in distances.items()))


def main() -> int:
    """Run the command line; the exit status."""
    print_anything()
    args = get_args_parser().parse_args()
    if not args.suggest:
        return exit_status(partial(_preprocess, args))
    try:
        suggest(args.dataset_path, None if args.unit == "auto" else args.unit)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
