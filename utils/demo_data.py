"""Write a small procedural data set in the raw layout of MVTec 3D-AD, to try everything without a download.

    python utils/demo_data.py demo/mvtec3d --seed 0

Two classes under names of MVTec 3D-AD (`bagel`, and `rope` whose images are not square), four kinds of
defects: `bump` and `dent` change the geometry, `stain` the colour, `combined` both. The ground truth marks
exactly the pixels that show a changed surface or colour. Each sample depends on the seed, the image size and
its own path only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.demo import parts as demo_parts
from utils.demo import scene as demo_scene
from utils.demo.parts import Spot
from utils.demo.scene import Part, View
from utils.files import write_json
from utils.image_files import write_png, write_xyz
from utils.preprocess.workers import run_jobs

MANIFEST = "demo_data.json"  # written last: a folder that has it is complete
FORMAT_VERSION = 1  # raise when the same parameters give other files
DEFECT_CODES = {"bump": 255, "combined": 254, "dent": 253, "stain": 252}  # gray values of gt, one a kind
CLASS_IDS = {str(code): kind for kind, code in DEFECT_CODES.items()} | {"0": "good"}
DEFECT_OFFSET_M = 3e-4  # a surface this far off the intact one is a defect; well above the sensor's noise
SPOT_RADIUS_M = (0.0045, 0.006)
SPOT_HEIGHT_M, SPOT_COSINE = 0.012, 0.8  # defects are on top, turned to the camera
SCOUT_ROWS = 60  # image height of the quick look that finds places for defects
SMALLEST_IMAGE = 64  # below it the points lie too far apart for preprocessing's clustering
PIXEL_PITCH_M = 3.75e-6  # of the camera's chip, for the calibration file


@dataclass(frozen=True)
class DemoClass:
    """How a class makes its intact part, and its image's width as a multiple of its height."""

    make: Callable[[np.random.Generator], Part]
    aspect: float


CLASSES = {"bagel": DemoClass(demo_parts.bagel, 1.0), "rope": DemoClass(demo_parts.rope, 1.5)}


@dataclass(frozen=True)
class DemoSettings:
    """What decides the files: samples a class in each folder, image height in pixels, seed."""

    seed: int = 0
    train: int = 8
    validation: int = 2
    test_per_kind: int = 2
    image_size: int = 400
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class DemoSample:
    """rgb (H, W, 3) uint8; xyz (H, W, 3) float32 in metres, 0 = missing; gt (H, W) uint8, 0 or the code."""

    rgb: np.ndarray
    xyz: np.ndarray
    gt: np.ndarray


class _Job(NamedTuple):
    root: Path
    class_name: str
    split: str
    kind: str
    number: int
    settings: DemoSettings


def write_demo_data(target: str | Path, settings: DemoSettings, num_workers: int = 1) -> bool:
    """Write the data set to `target` unless the same one is there; returns whether anything was written.

    The folder appears complete or not at all. Raises FileExistsError when `target` holds anything else.
    """
    target = Path(target)
    if _is_written(target, settings):
        return False
    partial = target.parent / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for name in CLASSES:
        write_json(partial / name / "class_ids.json", CLASS_IDS)
        camera = _camera_parameters(name, settings.image_size)
        write_json(partial / name / "calibration" / "camera_parameters.json", camera)
    jobs = [_Job(partial, *planned, settings) for planned in _planned(settings)]
    for _ in run_jobs(_write_sample, jobs, num_workers):
        pass
    write_json(partial / MANIFEST, asdict(settings))
    if target.exists():  # and is empty
        target.rmdir()
    partial.replace(target)
    return True


def make_sample(class_name: str, kind: str, image_size: int, rng: np.random.Generator) -> DemoSample:
    """One sample of a class; kind is `good` or a key of DEFECT_CODES."""
    demo_class = CLASSES[class_name]
    intact = demo_class.make(rng)
    part = _damaged(intact, kind, demo_class.aspect, rng)
    view = demo_scene.observe(part, image_size, round(image_size * demo_class.aspect))
    rgb, xyz = demo_scene.photograph(view, part, rng), demo_scene.measure(view, part, rng)
    code = 0 if kind == "good" else DEFECT_CODES[kind]
    gt = np.where(view.image(defect_pixels(view, intact, part)), code, 0).astype(np.uint8)
    return DemoSample(rgb, xyz, gt)


def defect_pixels(view: View, intact: Part, part: Part) -> np.ndarray:
    """Pixels (N,) that show a surface off the intact part's or a colour other than the intact part's."""
    points = view.points[:, view.on_part]
    moved = np.abs(intact.distance(points)) > DEFECT_OFFSET_M
    recolored = (intact.color(points) != part.color(points)).any(axis=0)
    changed = np.zeros_like(view.on_part)
    changed[view.on_part] = moved | recolored
    return changed


def _damaged(intact: Part, kind: str, aspect: float, rng: np.random.Generator) -> Part:
    """The part with defects of a kind; `combined` has a dent at one place and a stain at another."""
    part = intact
    if kind == "bump":
        part = demo_parts.with_bump(part, _random_spot(intact, aspect, rng))
    if kind in ("dent", "combined"):
        part = demo_parts.with_dent(part, _random_spot(intact, aspect, rng))
    if kind in ("stain", "combined"):
        part = demo_parts.with_stain(part, _random_spot(intact, aspect, rng), rng)
    return part


def _random_spot(part: Part, aspect: float, rng: np.random.Generator) -> Spot:
    view = demo_scene.observe(part, SCOUT_ROWS, round(SCOUT_ROWS * aspect))
    suitable = view.on_part & (view.points[2] > SPOT_HEIGHT_M) & (view.facing_camera() > SPOT_COSINE)
    pixel = rng.choice(np.flatnonzero(suitable))
    return Spot(view.points[:, pixel], view.normals[:, pixel], rng.uniform(*SPOT_RADIUS_M))


def _is_written(target: Path, settings: DemoSettings) -> bool:
    """Whether `target` is this very data set; FileExistsError when it is another one or something else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    manifest = target / MANIFEST
    if not manifest.is_file():
        raise FileExistsError(f"{target}: holds other files; name a new folder for the demo data set")
    found = json.loads(manifest.read_text(encoding="utf-8"))
    if found != asdict(settings):
        raise FileExistsError(
            f"{target}: holds a demo data set made with {found}; delete it or name a new folder"
        )
    return True


def _planned(settings: DemoSettings) -> Iterator[tuple[str, str, str, int]]:
    """Class, split, kind and number of each sample."""
    counts = {("train", "good"): settings.train, ("validation", "good"): settings.validation}
    counts |= {("test", kind): settings.test_per_kind for kind in ("good", *DEFECT_CODES)}
    for name in CLASSES:
        for (split, kind), count in counts.items():
            yield from ((name, split, kind, number) for number in range(count))


def _write_sample(job: _Job) -> None:
    folder, stem = f"{job.class_name}/{job.split}/{job.kind}", f"{job.number:03d}"
    rng = np.random.default_rng([job.settings.seed, zlib.crc32(f"{folder}/{stem}".encode())])
    sample = make_sample(job.class_name, job.kind, job.settings.image_size, rng)
    write_png(job.root / folder / "rgb" / f"{stem}.png", sample.rgb)
    write_xyz(job.root / folder / "xyz" / f"{stem}.tiff", sample.xyz)
    if job.split == "test":
        write_png(job.root / folder / "gt" / f"{stem}.png", sample.gt)


def _camera_parameters(name: str, image_size: int) -> dict[str, str | float]:
    """The keys of MVTec 3D-AD's calibration files: focus, sx, sy in metres, kappa = radial distortion."""
    width = round(image_size * CLASSES[name].aspect)
    center_x, center_y = demo_scene.principal_point(image_size, width)
    return {
        "camera_type": "area_scan_division",
        "focus": demo_scene.focal_length(image_size) * PIXEL_PITCH_M,
        "kappa": 0.0,
        "sx": PIXEL_PITCH_M,
        "sy": PIXEL_PITCH_M,
        "cx": center_x,
        "cy": center_y,
        "image_width": width,
        "image_height": image_size,
    }


def get_args_parser() -> argparse.ArgumentParser:
    """The script's flags; their defaults are those of DemoSettings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", help="new folder for the data set")
    for name, least, text in (
        ("seed", 0, "decides poses, textures, defects and noise"),
        ("train", 1, "training samples a class"),
        ("validation", 0, "validation samples a class"),
        ("test_per_kind", 1, "test samples a class that are good, and of each kind of defect"),
        ("image_size", SMALLEST_IMAGE, "image height in pixels"),
    ):
        default = getattr(DemoSettings, name)
        parser.add_argument(
            f"--{name}", type=_at_least(least), default=default, help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--num_workers", type=_at_least(1), default=os.cpu_count(), help="processes (default: one a core)"
    )
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is too small, the least is {least}")
        return value

    parse.__name__ = "int"  # argparse's wording for text that is no number
    return parse


def main() -> int:
    """Entry point; returns the exit status."""
    arguments = vars(get_args_parser().parse_args())
    target, num_workers = arguments.pop("target"), arguments.pop("num_workers")
    try:
        written = write_demo_data(target, DemoSettings(**arguments), num_workers)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {'written' if written else 'already there, nothing to do'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
