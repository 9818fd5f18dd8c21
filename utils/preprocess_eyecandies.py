"""Bring Eyecandies, as downloaded, into the layout of MVTec 3D-AD: organised clouds of the object alone.

    python utils/preprocess_eyecandies.py --dataset_path datasets/eyecandies \
        --target_dir datasets/eyecandies_preprocessed

train goes to train/good, test_public to test/good and test/bad (a mask with any non-zero pixel makes a sample
bad), val to validation/good with --use_val; test_private has no public ground truth and is left out. The download
is only read. A run that was cut is simply repeated; what is done is not done again. Samples with files that can't
be used are named, the others go on, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from tqdm import tqdm

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.image_files import SampleFileError, encode_png, read_mask, read_rgb
from utils.preprocess.eyecandies import (
    EYECANDIES_CLASSES,
    FARTHEST_ASIDE,
    FARTHEST_FROM_FRONT,
    GROUND_CLEARANCE,
    METRES_PER_UNIT,
    object_cloud,
    read_depth,
    read_pose,
)
from utils.preprocess.record import RecordError, open_record, write_part
from utils.preprocess.workers import run_jobs

IMAGE = "image_4.png"  # of the six renderings under different lights, the one that M3DM takes
TIFF_ZLIB_LEVEL = 1  # half the time of the default level, for 9 % more bytes

RECIPE = {
    "preprocessing": "eyecandies",
    "ground_clearance": GROUND_CLEARANCE,
    "farthest_from_front": FARTHEST_FROM_FRONT,
    "farthest_aside": FARTHEST_ASIDE,
    "metres_per_unit": METRES_PER_UNIT,
}


@dataclass(frozen=True)
class Source:
    """One downloaded sample: <root>/<class_name>/<split>/data/<stem>_*."""

    root: Path
    class_name: str
    split: str
    stem: str

    @property
    def name(self) -> str:
        """What the record calls it."""
        return f"{self.class_name}/{self.split}/{self.stem}"

    def file(self, suffix: str) -> Path:
        """The sample's file of that suffix."""
        return self.root / self.class_name / self.split / "data" / f"{self.stem}_{suffix}"


@dataclass(frozen=True)
class Outcome:
    """What became of a sample: the files written, relative to the target folder, or why there are none."""

    sample: str
    files: tuple[str, ...] = ()
    points: int = 0
    problem: str = ""


def convert(source: Source, target: Path) -> Outcome:
    """Write one sample's files beside their final names (`write_part`). Raises SampleFileError."""
    depth = read_depth(source.file("depth.png"), source.file("info_depth.yaml"))
    rgb = read_rgb(source.file(IMAGE))
    _check_size(source.file(IMAGE), rgb, depth)
    cloud = object_cloud(depth, read_pose(source.file("pose.txt")))
    contents = {"xyz/{}.tiff": _compressed_tiff(cloud), "rgb/{}.png": source.file(IMAGE).read_bytes()}
    folder = {"train": "train/good", "val": "validation/good"}.get(source.split)
    if folder is None:
        mask = read_mask(source.file("mask.png"))
        _check_size(source.file("mask.png"), mask, depth)
        folder = "test/bad" if mask.any() else "test/good"
        contents["gt/{}.png"] = encode_png(mask)
    files = {
        f"{source.class_name}/{folder}/{name.format(source.stem)}": data for name, data in contents.items()
    }
    for name, content in files.items():
        write_part(target / name, content)
    return Outcome(source.name, tuple(files), points=int(cloud.any(axis=2).sum()))


def find_sources(root: Path, splits: tuple[str, ...]) -> list[Source]:
    """All samples of the classes that are there, of which any file exists, sorted."""
    return [
        Source(root, name, split, stem)
        for name in EYECANDIES_CLASSES
        for split in splits
        for stem in _stems(root / name / split / "data")
    ]


def preprocess(sources: list[Source], target: Path, num_workers: int) -> list[Outcome]:
    """Convert the samples that the record in `target` does not have yet; returns their outcomes.

    A sample that fails is reported in its outcome, and the others go on. Raises RecordError, and OSError when
    the target can't be written.
    """
    outcomes = []
    with open_record(target, RECIPE) as record:
        pending = [source for source in sources if source.name not in record.entries]
        with closing(run_jobs(partial(_attempt, target=target), pending, num_workers)) as results:
            for outcome in tqdm(results, total=len(pending), unit="sample", disable=not pending):
                if not outcome.problem:
                    record.commit(outcome.sample, outcome.files, {"points": outcome.points})
                outcomes.append(outcome)
    return outcomes


def _attempt(source: Source, target: Path) -> Outcome:
    try:
        return convert(source, target)
    except SampleFileError as error:
        return Outcome(source.name, problem=str(error))


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


def _stems(folder: Path) -> list[str]:
    """Sample numbers, as they are written, of all files in a split's folder; none where it is absent."""
    if not folder.is_dir():
        return []
    matches = (re.match(r"(\d+)_", path.name) for path in folder.iterdir())
    return sorted({match[1] for match in matches if match})


def summarize(outcomes: list[Outcome], total: int) -> str:
    """Counts, of all `total` samples and by folder, and the samples in which no object was found."""
    converted = [outcome for outcome in outcomes if not outcome.problem]
    before, failed = total - len(outcomes), len(outcomes) - len(converted)
    folders = Counter(outcome.files[0].rsplit("/", 2)[0] for outcome in converted)
    lines = [f"{total} samples: {len(converted)} converted, {before} done before, {failed} failed"]
    lines += [f"  {folder}: {count}" for folder, count in sorted(folders.items())]
    lines += [f"no object was found: {outcome.sample}" for outcome in converted if outcome.points == 0]
    return "\n".join(lines)


def get_args_parser() -> argparse.ArgumentParser:
    """The script's flags."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--dataset_path", type=Path, default=Path("datasets/eyecandies"), help="the download (%(default)s)")
    add("--target_dir", type=Path, default=Path("datasets/eyecandies_preprocessed"), help="(%(default)s)")
    add("--use_val", action="store_true", help="convert val too, to validation/good; main.py doesn't read it")
    add("--num_workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    return parser


def main() -> int:
    """Entry point; returns the exit status, 1 when anything failed."""
    parser = get_args_parser()
    args = parser.parse_args()
    if args.num_workers < 1:
        parser.error(f"--num_workers {args.num_workers}: must be at least 1")
    splits = ("train", "val", "test_public") if args.use_val else ("train", "test_public")
    try:
        sources = _announced_sources(args.dataset_path, args.target_dir, splits)
        outcomes = preprocess(sources, args.target_dir, args.num_workers)
    except (OSError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("error: a worker was killed, perhaps for memory; use fewer --num_workers", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this run stopped", file=sys.stderr)
        return 130
    print(summarize(outcomes, len(sources)))
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)
    return int(bool(problems))


def _announced_sources(root: Path, target: Path, splits: tuple[str, ...]) -> list[Source]:
    """The samples to convert, after a word on what is absent or left out. Raises OSError when there are none."""
    if target.resolve() == root.resolve():
        raise OSError(f"{target}: --target_dir is the download itself; name another folder")
    sources = find_sources(root, splits)
    if not sources:
        raise OSError(
            f"{root}: no <class>/train/data/*_depth.png here; set --dataset_path to the unpacked Eyecandies"
        )
    found = {(source.class_name, source.split) for source in sources}
    present = [name for name in EYECANDIES_CLASSES if (root / name).is_dir()]
    if absent := [name for name in EYECANDIES_CLASSES if name not in present]:
        print(f"not there: {', '.join(absent)}")
    if empty := [f"{name}/{split}" for name in present for split in splits if (name, split) not in found]:
        print(f"without samples: {', '.join(empty)}")
    if any((root / name / "test_private").is_dir() for name in present):
        print("test_private is skipped: its ground truth is not public")
    return sources


if __name__ == "__main__":
    sys.exit(main())
