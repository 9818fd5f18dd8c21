"""Preprocess MVTec 3D-AD: remove the background plane, pad to squares, keep the largest cluster of points.

    python utils/preprocessing.py datasets/mvtec3d/                      # in place
    python utils/preprocessing.py datasets/mvtec3d/ --output_dir DIR     # into a copy

A run that was cut is repeated with the same command; samples that are done are left alone. The result of a
sample depends on the parameters, the seed, and its own files and path only. Files that can't be used are named
and left as they are, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import defaultdict
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.files import atomic_path
from utils.image_files import (
    SampleFileError,
    encode_png,
    encode_xyz,
    foreign_images,
    read_mask,
    read_rgb,
    read_xyz,
)
from utils.preprocess.clustering import dbscan
from utils.preprocess.record import RECORD_NAME, is_bookkeeping, open_record, write_part
from utils.preprocess.sample import NO_PLANE, Parameters, pad_to_square, preprocess_sample
from utils.preprocess.workers import run_jobs

SPLITS = ("train", "validation", "test")
SUFFIXES = {"xyz": ".tiff", "rgb": ".png", "gt": ".png"}
EXAMPLES_SHOWN = 5  # of each oddity
RESULT_VERSION = 1  # raise when the same parameters give other files: one data set is not to mix both


class Job(NamedTuple):
    """One sample: `name` is its folder and stem relative to the data set, as cable_gland/test/cut/003."""

    root: Path
    target: Path
    name: str
    parameters: Parameters


class Outcome(NamedTuple):
    """What became of one sample: the files it has now as parts and its report, or an error."""

    name: str
    files: list[str]
    report: dict[str, Any]
    error: str = ""


@dataclass(frozen=True)
class Summary:
    """Samples done in this run and before it; reports of all done samples by name; error messages of the others."""

    done: int
    done_before: int
    reports: dict[str, dict[str, Any]]
    errors: list[str]


def preprocess_dataset(
    root: Path, target: Path, parameters: Parameters, num_workers: int, progress: bool = True
) -> Summary:
    """Preprocess all samples under `root` into `target`, which may be `root` itself.

    Raises FileNotFoundError when there is no sample, ValueError when `target` lies inside `root`, RecordError when
    `target` holds results of other parameters, and OSError when it can't be written.
    """
    root, target = root.resolve(), target.resolve()
    if root in target.parents:
        raise ValueError(
            f"--output_dir {target}: lies inside the data set {root}; choose a folder outside it"
        )
    names = find_samples(root)
    with open_record(target, {"version": RESULT_VERSION, **asdict(parameters)}) as record:
        if target != root:
            _copy_other_files(root, target, names)
        jobs = [Job(root, target, name, parameters) for name in names if name not in record.entries]
        errors = _foreign_images(root)
        dbscan(np.zeros((1, 3)), eps=1.0, min_points=1)  # compiles here once, not in every worker
        with closing(run_jobs(_process, jobs, num_workers)) as outcomes:
            for outcome in tqdm(outcomes, total=len(jobs), unit="sample", disable=not (progress and jobs)):
                if outcome.error:
                    errors.append(outcome.error)
                else:
                    record.commit(outcome.name, outcome.files, outcome.report)
        reports = {name: record.entries[name]["report"] for name in names if name in record.entries}
    done = sum(job.name in record.entries for job in jobs)
    return Summary(done, len(names) - len(jobs), reports, errors)


def find_samples(root: Path) -> list[str]:
    """Names of all samples under `root`, sorted; a sample is there as soon as one of its files is.

    Raises FileNotFoundError when there is none.
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


def _foreign_images(root: Path) -> list[str]:
    """An error for each image that is left alone because of its name."""
    return [
        f"{path}: left alone, images here must end in {suffix}; rename or convert it and run again"
        for split in SPLITS
        for kind, suffix in SUFFIXES.items()
        for folder in sorted(root.glob(f"*/{split}/*/{kind}"))
        for path in foreign_images(folder, suffix)
    ]


def sample_files(name: str) -> dict[str, str]:
    """The three files of a sample relative to the data set, by kind (xyz, rgb, gt)."""
    folder, stem = name.rsplit("/", 1)
    return {kind: f"{folder}/{kind}/{stem}{suffix}" for kind, suffix in SUFFIXES.items()}


def _process(job: Job) -> Outcome:
    try:
        parts, report = _preprocess_files(job)
    except SampleFileError as error:
        return Outcome(job.name, [], {}, str(error))
    for file, content in parts.items():
        write_part(job.target / file, content)
    return Outcome(job.name, list(parts), report)


def _preprocess_files(job: Job) -> tuple[dict[str, bytes], dict[str, Any]]:
    """New contents of the sample's files, and the report on it."""
    files = sample_files(job.name)
    cloud, image = read_xyz(job.root / files["xyz"]), read_rgb(job.root / files["rgb"])
    mask = read_mask(job.root / files["gt"]) if (job.root / files["gt"]).exists() else None
    for kind, pixels in (("rgb", image), ("gt", mask)):
        if pixels is not None and pixels.shape[:2] != cloud.shape[:2]:
            raise SampleFileError(
                job.root / files[kind], f"has {pixels.shape[:2]} pixels, its xyz {cloud.shape[:2]}"
            )
    rng = np.random.default_rng([job.parameters.seed, *job.name.encode()])
    cloud, image, report = preprocess_sample(cloud, image, job.parameters, rng)
    parts = {files["xyz"]: encode_xyz(cloud), files["rgb"]: encode_png(image)}
    if mask is not None:
        parts[files["gt"]] = encode_png(pad_to_square(mask))
    return parts, report._asdict()


def _copy_other_files(root: Path, target: Path, names: list[str]) -> None:
    """Copy calibration, licence and whatever else is no sample's file, unless it is there with the same size."""
    own = {file for name in names for file in sample_files(name).values()}
    for source in root.rglob("*"):
        relative = source.relative_to(root)
        if not source.is_file() or relative.as_posix() in own or is_bookkeeping(source):
            continue
        copy = target / relative
        if not copy.exists() or copy.stat().st_size != source.stat().st_size:
            with atomic_path(copy) as temporary:
                shutil.copyfile(source, temporary)


def describe(summary: Summary) -> str:
    """The summary in words: counts, then the oddities with a few examples of each."""
    counts = f"done now {summary.done}, done before {summary.done_before}, failed {len(summary.errors)}"
    lines = [f"Samples: {counts}"]
    odd: dict[str, list[str]] = defaultdict(list)
    for name, report in sorted(summary.reports.items()):
        for kind, detail in report["odd"].items():
            odd[kind].append(f"  {name}: {detail}")
    for kind, examples in sorted(odd.items()):
        lines += [f"{kind} ({len(examples)}):", *examples[:EXAMPLES_SHOWN]]
        if len(examples) > EXAMPLES_SHOWN:
            lines.append(f"  and {len(examples) - EXAMPLES_SHOWN} more, see {RECORD_NAME} in the data set")
    if len(odd[NO_PLANE]) > len(summary.reports) / 2:
        lines.append("Most samples show no background at their border: were they preprocessed before?")
    return "\n".join(lines)


def get_args_parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset_path", type=Path, help="folder of the data set, with one folder a class")
    parser.add_argument(
        "--output_dir", type=Path, help="write there instead of in place; other files are copied"
    )
    parser.add_argument(
        "--num_workers", type=int, default=os.cpu_count(), help="processes (default: all cores)"
    )
    for item in fields(Parameters):
        text = f"{item.metadata['help']} (default {item.default})"
        parser.add_argument(f"--{item.name}", type=type(item.default), default=item.default, help=text)
    return parser


def main() -> int:
    """Run the command line; the exit status."""
    parser = get_args_parser()
    args = parser.parse_args()
    if args.num_workers < 1:
        parser.error(f"--num_workers {args.num_workers}: must be at least 1")
    try:
        parameters = Parameters(**{item.name: getattr(args, item.name) for item in fields(Parameters)})
        summary = preprocess_dataset(
            args.dataset_path, args.output_dir or args.dataset_path, parameters, args.num_workers
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print(
            "error: a worker was killed, perhaps for lack of memory; the same command continues, "
            f"with fewer than --num_workers {args.num_workers} if it happens again",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues where this run stopped", file=sys.stderr)
        return 130
    print(describe(summary))
    for message in summary.errors:
        print(f"failed: {message}", file=sys.stderr)
    return 1 if summary.errors else 0


if __name__ == "__main__":
    sys.exit(main())
