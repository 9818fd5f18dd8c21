"""Bring Eyecandies, as downloaded, into the layout of MVTec 3D-AD: organised clouds of the object alone.

    python utils/preprocess_eyecandies.py --dataset_path datasets/eyecandies \
        --target_dir datasets/eyecandies_preprocessed

train goes to train/good, test_public to test/good and test/bad (a mask with any non-zero pixel makes a sample
bad), val to validation/good with --use_val; test_private has no public ground truth and is left out. The download
is only read. A run that was cut is simply repeated; what is done is not done again, unless its files in the download
changed since, by size and time. Samples that can't be used, show no object, or are gone from the download are named,
the others go on, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.class_names import EYECANDIES_CLASSES
from utils.console import print_anything
from utils.files import stamp
from utils.flags import named_path, positive
from utils.image_files import SampleFileError, encode_png, read_mask, read_rgb
from utils.preprocess.driver import (
    Converted,
    Preprocessing,
    Summary,
    check_target,
    exit_status,
    preprocess,
    refuse_shared_files,
)
from utils.preprocess.eyecandies import (
    FARTHEST_ASIDE,
    FARTHEST_FROM_FRONT,
    GROUND_CLEARANCE,
    METRES_PER_UNIT,
    object_cloud,
    read_depth,
    read_pose,
)
from utils.preprocess.sample import NO_POINTS

IMAGE = "image_4.png"  # of the six renderings under different lights, the one that M3DM takes
READ = (
    "depth.png",
    "info_depth.yaml",
    "pose.txt",
    IMAGE,
    "mask.png",
)  # of a sample; train and val have no mask
FOLDERS = ("train/good", "validation/good", "test/good", "test/bad")  # of a class in the target
TIFF_ZLIB_LEVEL = 1  # half the time of the default level, for 9 % more bytes
PARAMETERS = {
    "preprocessing": "eyecandies",
    "ground_clearance": GROUND_CLEARANCE,
    "farthest_from_front": FARTHEST_FROM_FRONT,
    "farthest_aside": FARTHEST_ASIDE,
    "metres_per_unit": METRES_PER_UNIT,
}


def preprocess_dataset(root: Path, target: Path, splits: tuple[str, ...], num_workers: int) -> Summary:
    """Bring the splits of the download at `root` to `target`.

    Raises FileNotFoundError when there is no sample, ValueError when `target` is the download itself or links make two
    of its folders one, RecordError when it holds other results, and OSError when it can't be written.
    """
    if target.resolve() == root.resolve():
        raise ValueError(f"--target_dir {target}: is the download itself; name another folder")
    check_target(target)
    names = find_samples(root, splits)
    if not names:
        raise FileNotFoundError(
            f"{root}: no <class>/train/data/*_depth.png here; set --dataset_path to the unpacked Eyecandies"
        )
    _tell_what_is_left_out(root, splits, names)
    classes = sorted({name.split("/")[0] for name in names})
    refuse_shared_files(
        target / name / folder / kind
        for name in classes
        for folder in FOLDERS
        for kind in ("xyz", "rgb", "gt")
    )
    job = Preprocessing(names, partial(convert, root), partial(stamps, root), PARAMETERS)
    return preprocess(job, target, num_workers)


def find_samples(root: Path, splits: tuple[str, ...]) -> list[str]:
    """Names of all samples of which any file exists, sorted, as CandyCane/train/003: class, split and number."""
    return [
        f"{name}/{split}/{number}"
        for name in EYECANDIES_CLASSES
        for split in splits
        for number in _numbers(root / name / split / "data")
    ]


def sample_file(root: Path, name: str, suffix: str) -> Path:
    """A downloaded file of a sample."""
    folder, number = name.rsplit("/", 1)
    return root / folder / "data" / f"{number}_{suffix}"


def stamps(root: Path, name: str) -> list[str]:
    """Name, size and time of each downloaded file that a sample is made of, "" for one that is not there."""
    return [stamp(sample_file(root, name, suffix)) for suffix in READ]


def convert(root: Path, name: str) -> Converted:
    """The files of a sample in MVTec 3D-AD's layout, and the report on it. Raises SampleFileError."""
    file, source = partial(sample_file, root, name), stamps(root, name)
    depth = read_depth(file("depth.png"), file("info_depth.yaml"))
    _check_size(file(IMAGE), read_rgb(file(IMAGE)), depth)
    cloud = object_cloud(depth, read_pose(file("pose.txt")))
    contents = {"xyz/{}.tiff": _compressed_tiff(cloud), "rgb/{}.png": file(IMAGE).read_bytes()}
    class_name, split, number = name.split("/")
    folder = {"train": "train/good", "val": "validation/good"}.get(split)
    if folder is None:
        mask = read_mask(file("mask.png"))
        _check_size(file("mask.png"), mask, depth)
        folder = "test/bad" if mask.any() else "test/good"
        contents["gt/{}.png"] = encode_png(mask)
    report: dict[str, Any] = {"points": int(cloud.any(axis=2).sum())}
    if not cloud.any():
        report["odd"] = {NO_POINTS: "nothing above the ground"}
    return Converted(
        {f"{class_name}/{folder}/{path.format(number)}": content for path, content in contents.items()},
        report,
        source,
    )


def _check_size(path: Path, pixels: np.ndarray, depth: np.ndarray) -> None:
    if pixels.shape[:2] != depth.shape:
        raise SampleFileError(
            path, f"has {pixels.shape[:2]} pixels, but the sample's depth has {depth.shape}"
        )


def _compressed_tiff(cloud: np.ndarray) -> bytes:
    """Nine tenths of a cloud are zeros: 3 MB become a tenth of it, which for ten classes saves 30 GB."""
    buffer, level = io.BytesIO(), {"level": TIFF_ZLIB_LEVEL}
    tifffile.imwrite(
        buffer, cloud, photometric="rgb", metadata=None, compression="zlib", compressionargs=level
    )
    return buffer.getvalue()


def _numbers(folder: Path) -> list[str]:
    """Sample numbers, as they are written, of all files in a split's folder; none where it is absent."""
    if not folder.is_dir():
        return []
    matches = (re.match(r"(\d+)_", path.name) for path in folder.iterdir())
    return sorted({match[1] for match in matches if match})


def _tell_what_is_left_out(root: Path, splits: tuple[str, ...], names: list[str]) -> None:
    found = {name.rsplit("/", 1)[0] for name in names}
    present = [name for name in EYECANDIES_CLASSES if (root / name).is_dir()]
    if absent := [name for name in EYECANDIES_CLASSES if name not in present]:
        print(f"not there: {', '.join(absent)}")
    expected = [f"{name}/{split}" for name in present for split in splits]
    if empty := [folder for folder in expected if folder not in found]:
        print(f"without samples: {', '.join(empty)}")
    if any((root / name / "test_private").is_dir() for name in present):
        print("test_private is skipped: its ground truth is not public")


def get_args_parser() -> argparse.ArgumentParser:
    """The script's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--dataset_path",
        type=named_path,
        default=Path("datasets/eyecandies"),
        help="the download (%(default)s)",
    )
    add(
        "--target_dir",
        type=named_path,
        default=Path("datasets/eyecandies_preprocessed"),
        help="(%(default)s)",
    )
    add("--use_val", action="store_true", help="convert val too, to validation/good; main.py doesn't read it")
    add("--num_workers", type=positive, default=os.cpu_count(), help="processes (default: all cores)")
    return parser


def main() -> int:
    """Run the command line; the exit status."""
    print_anything()
    args = get_args_parser().parse_args()
    splits = ("train", "val", "test_public") if args.use_val else ("train", "test_public")
    return exit_status(
        partial(preprocess_dataset, args.dataset_path, args.target_dir, splits, args.num_workers)
    )


if __name__ == "__main__":
    sys.exit(main())
