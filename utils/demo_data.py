"""Write a small procedural data set in the raw layout of MVTec 3D-AD, to try everything without a download.

    python utils/demo_data.py demo/mvtec3d --seed 0

Two classes under names of MVTec 3D-AD (`bagel`, and `rope` whose images are not square), four kinds of
defects: `bump` and `dent` change the geometry, `stain` the color, `combined` both. The ground truth marks
exactly the pixels that show a changed surface or color. Each sample depends on the seed, the image size and
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
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from utils.console import print_anything
from utils.demo import parts as demo_parts
from utils.demo import scene as demo_scene
from utils.demo.scene import Relief, View, look_up
from utils.files import alone_with, write_json, write_text
from utils.flags import HelpFormatter, named_path, natural, positive, seed
from utils.image_files import write_png, write_xyz
from utils.preprocess.workers import run_jobs

MANIFEST = "demo_data.json"  # written last: a folder that has it is complete
FORMAT_VERSION = 2  # raise when the same parameters give other files
DEFECT_CODES = {"bump": 255, "combined": 254, "dent": 253, "stain": 252}  # gray values of gt, one a kind
CLASS_IDS = {str(code): kind for kind, code in DEFECT_CODES.items()} | {"0": "good"}
DEFECT_OFFSET_M = 3e-4  # a surface this far off the intact one is a defect; well above the sensor's noise
SMALLEST_IMAGE = 64  # below it the points lie too far apart for preprocessing's clustering
PIXEL_PITCH_M = 3.75e-6  # of the camera's chip, for the calibration file
DEFECTS = {
    "good": (),
    "bump": (demo_parts.with_bump,),
    "dent": (demo_parts.with_dent,),
    "stain": (demo_parts.with_stain,),
    "combined": (demo_parts.with_dent, demo_parts.with_stain),
}


@dataclass(frozen=True)
class DemoClass:
    """How a class makes its intact part, and its image's width as a multiple of its height."""

    make: Callable[[np.random.Generator], Relief]
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


class DemoSample(NamedTuple):
    """rgb (H, W, 3) uint8; xyz (H, W, 3) float32 in metres, 0 = missing; gt (H, W) uint8, 0 or the code."""

    rgb: np.ndarray
    xyz: np.ndarray
    gt: np.ndarray


def write_demo_data(target: str | Path, settings: DemoSettings, num_workers: int = 1) -> bool:
    """Write the data set to `target` unless the same one is there; returns whether anything was written.

    The folder appears complete or not at all. Raises FileExistsError when `target` holds anything else, and OSError
    while another process writes it.
    """
    target = Path(target)
    if _is_written(target, settings):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    problem = f"{target}: another run is writing it; wait for it to end"
    with alone_with(target.parent / f".{target.name}.lock", problem):
        if _is_written(target, settings):  # by a run that has ended meanwhile
            return False
        partial_target = target.parent / f".{target.name}.partial"
        shutil.rmtree(partial_target, ignore_errors=True)
        try:
            _write_all(partial_target, settings, num_workers)
            if target.exists():  # and is empty
                target.rmdir()
            partial_target.replace(target)
        finally:
            shutil.rmtree(partial_target, ignore_errors=True)
    return True


def _write_all(folder: Path, settings: DemoSettings, num_workers: int) -> None:
    for name in CLASSES:
        write_json(folder / name / "class_ids.json", CLASS_IDS)
        camera = _camera_parameters(name, settings.image_size)
        write_json(folder / name / "calibration" / "camera_parameters.json", camera)
    for _ in run_jobs(partial(_write_sample, folder, settings), list(_planned(settings)), num_workers):
        pass
    write_text(folder / MANIFEST, json.dumps(asdict(settings)))


def make_sample(class_name: str, kind: str, image_size: int, rng: np.random.Generator) -> DemoSample:
    """One sample of a class; kind is a key of DEFECTS, of which `combined` has two at two places."""
    demo_class = CLASSES[class_name]
    part = intact = demo_class.make(rng)
    for add_defect in DEFECTS[kind]:
        part = add_defect(part, rng)
    view = demo_scene.observe(part, image_size, round(image_size * demo_class.aspect))
    gt = np.where(defect_pixels(view, intact, part), DEFECT_CODES.get(kind, 0), 0)
    gt = gt.astype(np.uint8).reshape(view.shape)
    return DemoSample(demo_scene.photograph(view, part, rng), demo_scene.measure(view, part, rng), gt)


def defect_pixels(view: View, intact: Relief, part: Relief) -> np.ndarray:
    """Pixels (N,) that show a surface off the intact part's or a color other than the intact part's."""
    moved = np.abs(intact.height - part.height) > DEFECT_OFFSET_M
    recolored = (intact.color != part.color).any(axis=0)
    return view.on_part & (look_up((moved | recolored)[None].astype(float), view.points)[0] > 0.5)


def _is_written(target: Path, settings: DemoSettings) -> bool:
    """Whether `target` is this very data set; FileExistsError when it is another one or something else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    manifest = target / MANIFEST
    if not manifest.is_file():
        raise FileExistsError(f"{target}: holds other files; name a new folder for the demo data set")
    found = manifest.read_text(encoding="utf-8", errors="replace")
    if found != json.dumps(asdict(settings)):
        raise FileExistsError(
            f"{target}: holds a demo data set made with {' '.join(found.split())}; delete it or name a new folder"
        )
    return True


def _planned(settings: DemoSettings) -> Iterator[tuple[str, str, str, int]]:
    """Class, split, kind and number of each sample."""
    counts = {("train", "good"): settings.train, ("validation", "good"): settings.validation}
    counts |= {("test", kind): settings.test_per_kind for kind in DEFECTS}
    for name in CLASSES:
        for (split, kind), count in counts.items():
            yield from ((name, split, kind, number) for number in range(count))


def _write_sample(root: Path, settings: DemoSettings, planned: tuple[str, str, str, int]) -> None:
    class_name, split, kind, number = planned
    folder, stem = f"{class_name}/{split}/{kind}", f"{number:03d}"
    rng = np.random.default_rng([settings.seed, zlib.crc32(f"{folder}/{stem}".encode())])
    sample = make_sample(class_name, kind, settings.image_size, rng)
    write_png(root / folder / "rgb" / f"{stem}.png", sample.rgb)
    write_xyz(root / folder / "xyz" / f"{stem}.tiff", sample.xyz)
    if split == "test":
        write_png(root / folder / "gt" / f"{stem}.png", sample.gt)


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
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=HelpFormatter)
    parser.add_argument("target", type=named_path, help="new folder for the data set")
    for name, kind, text in (
        ("seed", seed, "decides poses, textures, defects and noise"),
        ("train", positive, "training samples a class"),
        ("validation", natural, "validation samples a class"),
        ("test_per_kind", positive, "test samples a class that are good, and of each kind of defect"),
        ("image_size", positive, f"image height in pixels, at least {SMALLEST_IMAGE}"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=getattr(DemoSettings, name), help=text)
    parser.add_argument("--num_workers", type=positive, default=os.cpu_count(), help="processes")
    return parser


def main() -> int:
    """Entry point; returns the exit status."""
    print_anything()
    parser = get_args_parser()
    arguments = vars(parser.parse_args())
    target, num_workers = arguments.pop("target"), arguments.pop("num_workers")
    settings = DemoSettings(**arguments)
    if settings.image_size < SMALLEST_IMAGE:
        parser.error(f"--image_size {settings.image_size}: is too small, the least is {SMALLEST_IMAGE}")
    try:
        written = write_demo_data(target, settings, num_workers)
        print(f"{target}: {'written' if written else 'already there, nothing to do'}", flush=True)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("error: a worker was killed, perhaps for memory; use fewer --num_workers", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; repeat the command to begin again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
