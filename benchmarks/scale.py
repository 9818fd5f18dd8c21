"""How the parts grow with their input: CPU time at some sizes, and the slope of its logarithm (docs/scale.md).

python benchmarks/scale.py                           # all parts, five minutes on an idle machine
python benchmarks/scale.py coreset search            # those whose names hold one of the words

One thread, and the time of the processor, not of the clock: other work on the machine counts little. An exponent of 1
is linear, of 2 quadratic. The memory is what the largest size adds. Features, clouds and scenes are generated.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

import numpy as np
import torch

from benchmarks.coreset import SHARE, gaussian, part_like
from benchmarks.metrics import generated
from benchmarks.nearest import FEATURES
from benchmarks.timing import table_row
from dataset import load_sample
from feature_extractors.memory_bank.coreset import greedy_coreset
from feature_extractors.memory_bank.nearest import NearestRows
from models.alignment import Interpolation, alignment_operator
from models.backbones import RGB_BACKBONES
from models.fpfh.descriptors import fpfh_features
from models.point_transformer.point_ops import group_points
from tests.reference.preprocessing import make_scene
from utils.image_files import write_png, write_xyz
from utils.metrics import METRICS, Predictions
from utils.preprocess.sample import Parameters, preprocess_sample
from utils.resources import peak_memory_mb, reset_peak_memory

Work = Callable[[], Any]
LONG_S = 10.0  # what takes longer is not repeated
ROWS = (7600, 25000, 76000, 250000, 765000)
POINTS = (7000, 20000, 60000, 180000)
SIDES = (400, 1265, 3162)  # of sensors: 0.16, 1.6 and 10 Mpixel
FIELD_M = 0.2  # what a sensor sees, whatever its pixels
FILLED_PATCHES = 1000  # of an xyz sample; the others are empty, and one row


@dataclass(frozen=True)
class Growth:
    """A part of the work, what its input is counted in, and the work at a size; making the input is not timed."""

    part: str
    unit: str
    sizes: tuple[int, ...]
    make: Callable[[int, Path], Work]


def run(words: list[str], repeats: int = 3) -> Iterator[dict[str, Any]]:
    """One row a part whose name holds one of the words; all without any."""
    for growth in GROWTHS:
        if not words or any(word in growth.part for word in words):
            with tempfile.TemporaryDirectory() as folder:
                yield _row(growth, Path(folder), repeats)


def _row(growth: Growth, folder: Path, repeats: int) -> dict[str, Any]:
    growth.make(growth.sizes[0], folder)()  # compiles
    measured = [_measured(growth.make(size, folder), repeats) for size in growth.sizes]
    seconds = [value for value, _ in measured]
    exponent = np.polyfit(np.log(growth.sizes), np.log(seconds), 1)[0]
    last = np.log(seconds[-1] / seconds[-2]) / np.log(growth.sizes[-1] / growth.sizes[-2])
    row = table_row(growth.part, f"{', '.join(map(str, growth.sizes))} {growth.unit}")
    row["peak_memory"] = measured[-1][1]
    row["ours"] = ", ".join(f"{value:.3g}" for value in seconds) + " s"
    row["ratio"] = round(seconds[-1] / seconds[0], 1)
    row["exactness"] = f"exponent {exponent:.2f}, between the last two {last:.2f}"
    return row


def _measured(work: Work, repeats: int) -> tuple[float, str | None]:
    """Seconds, and the memory that the work adds at its peak; None where the system does not tell."""
    tells = reset_peak_memory()
    before = peak_memory_mb() or 0.0
    seconds = _cpu_seconds(work, repeats)
    return seconds, f"{((peak_memory_mb() or 0.0) - before) / 1000:.2f} GB" if tells else None


def _cpu_seconds(work: Work, repeats: int) -> float:
    runs: list[float] = []
    while len(runs) < repeats and max(runs, default=0) < LONG_S:
        start = time.process_time()
        work()
        runs.append(time.process_time() - start)
    return median(runs)


def _coreset(make: Callable[[int], torch.Tensor], size: int, _: Path) -> Work:
    return partial(greedy_coreset, make(size), int(SHARE * size))


def _search(kind: str, size: int, _: Path) -> Work:
    generator = torch.Generator().manual_seed(0)
    bank = NearestRows(FEATURES[kind](size, generator))
    return partial(bank.nearest, FEATURES[kind](FILLED_PATCHES, generator))


def _fpfh(count: int, _: Path) -> Work:
    return partial(fpfh_features, _relief(count))


def _groups(count: int, _: Path) -> Work:
    return partial(group_points, _relief(count), 1024, 128)


def _alignment(interpolation: Interpolation, count: int, _: Path) -> Work:
    points = _relief(count)
    size = 8 * int(np.ceil(np.sqrt(count) / 8))
    centers = group_points(points, 1024, 128).centers
    build = partial(alignment_operator, image_size=size, side=56, interpolation=interpolation)
    return partial(build, points, np.arange(count), centers)


def _relief(count: int) -> np.ndarray:
    """A noisy relief, (count, 3) in metres, half a metre away and as large as a part, whatever its points."""
    rng = np.random.default_rng(0)
    u, v = rng.uniform(-0.05, 0.05, (2, count))
    depth = 0.5 + 0.005 * np.sin(60 * u) * np.cos(50 * v) + 1e-4 * rng.standard_normal(count)
    return np.stack([u, v, depth], axis=1).astype(np.float32)


def _preprocessing(pixels: int, _: Path) -> Work:
    scene = _scene(pixels)
    return lambda: preprocess_sample(*scene, Parameters(), np.random.default_rng(0))


def _loading(pixels: int, folder: Path) -> Work:
    cloud, image = _scene(pixels)
    xyz, rgb = folder / f"{pixels}.tiff", folder / f"{pixels}.png"
    write_xyz(xyz, cloud)
    write_png(rgb, image)
    return partial(load_sample, rgb, xyz, 224)


def _scene(pixels: int) -> tuple[np.ndarray, np.ndarray]:
    side = round(pixels**0.5)
    cloud, image, _ = make_scene(side, side, np.random.default_rng(0), pitch=FIELD_M / side)
    return cloud, image


def _vit(patches: int, _: Path) -> Work:
    side = 8 * round(patches**0.5)
    network = RGB_BACKBONES["vit_base_patch8_224_dino"].build(side, None)
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return partial(torch.inference_mode()(network), image)


def _metrics(maps: int, _: Path) -> Work:
    masks, scores = generated(maps)
    labels, image_scores = np.asarray(masks.any(axis=(1, 2))), scores.max(axis=(1, 2))
    functions = [metric.function for metric in METRICS if metric.key in ("pixel_rocauc", "au_pro")]

    def work() -> None:
        predictions = Predictions(labels, image_scores, masks, scores)
        for function in functions:
            function(predictions)

    return work


PIXELS = tuple(side**2 for side in SIDES)
GROWTHS = (
    Growth("coreset, float16, part-like rows", "rows", ROWS, partial(_coreset, part_like)),
    Growth("coreset, float16, gaussian rows", "rows", ROWS[:4], partial(_coreset, gaussian)),
    Growth("search, rows on a surface", "bank rows", ROWS[:4], partial(_search, "on a surface")),
    Growth("search, gaussian rows", "bank rows", ROWS[:4], partial(_search, "gaussian")),
    Growth("groups, 1024 x 128", "points", POINTS, _groups),
    Growth("PFA's operator, exact distances", "points", POINTS, partial(_alignment, "exact")),
    Growth("PFA's operator, released distances", "points", POINTS, partial(_alignment, "cancelling")),
    Growth("FPFH", "points", POINTS[:3], _fpfh),
    Growth("preprocessing a sample", "pixels", PIXELS, _preprocessing),
    Growth("loading a sample at 224", "pixels", PIXELS, _loading),
    Growth("ViT-B/8", "patches", (196, 784, 3136), _vit),
    Growth("pixel ROC AUC + AU-PRO", "maps of 224 x 224", (30, 110, 400), _metrics),
)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="parts whose names hold one of them (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts")
    args = parser.parse_args()
    for row in run(args.words, args.repeats):
        print(row, flush=True)


if __name__ == "__main__":
    main()
