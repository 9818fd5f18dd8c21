"""Eyecandies' preprocessing a sample: one pass of array operations against the per-pixel loops of the release.

python benchmarks/eyecandies.py                      # a rendered scene
python benchmarks/eyecandies.py --data DIR           # real samples: DIR/<class>/<split>/data/<number>_*
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.timing import time_row, timed
from tests.reference.eyecandies import plain_object_cloud
from utils.preprocess.driver import convert_to_parts
from utils.preprocess.eyecandies import object_cloud, read_depth, read_pose, unproject
from utils.preprocess_eyecandies import convert, find_samples, sample_file

NEAREST, FARTHEST, GROUND_Y = 2.311065, 4.903090, 2.1494  # of the real renderings
POSE = np.array(
    [[1, 0, 0, 0], [0, 0.5**0.5, -(0.5**0.5), -2.12132], [0, 0.5**0.5, 0.5**0.5, 2.22132], [0, 0, 0, 1]]
)


def run(
    data: Path | None = None, samples: int = 3, repeats: int = 5, side: int = 512
) -> list[dict[str, Any]]:
    """Seconds a sample, medians: the geometry alone, and all of it, files read and written.

    The second row's plain form is ours with the loops in place of the array operations.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = data or _rendered_download(Path(folder), samples, side)
        names = find_samples(root, ("train", "test_public"))[:samples]
        if not names:
            raise SystemExit(f"--data {root}: no <class>/train/data/<number>_depth.png there")
        loaded = [_load(root, name) for name in names]
        plain_s, plain = zip(*(_repeated(partial(plain_object_cloud, *s)) for s in loaded), strict=True)
        ours_s, ours = zip(*(_repeated(partial(object_cloud, *s), repeats) for s in loaded), strict=True)
        from_file_to_file = partial(convert_to_parts, partial(convert, root), Path(folder) / "target")
        written_s = [_repeated(partial(from_file_to_file, name), repeats)[0] for name in names]
    loops, arrays, whole = median(plain_s), median(ours_s), median(written_s)
    size = f"{len(names)} samples of {loaded[0][0].shape}"
    return [
        time_row("eyecandies: points and crop", size, loops, arrays, _exactness(plain, ours)),
        time_row(
            "eyecandies: a sample from file to file",
            size,
            loops - arrays + whole,
            whole,
            "as above",
        ),
    ]


def _rendered_download(root: Path, samples: int, side: int) -> Path:
    """Samples in Eyecandies' layout: a ball on the ground, seen by Eyecandies' camera."""
    folder = root / "CandyCane/train/data"
    folder.mkdir(parents=True)
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    ball = 0.5 * np.sqrt(np.clip(0.04 - rows**2 - columns**2, 0, None))
    near, far = (unproject(np.full((side, side), depth), POSE)[..., 1] for depth in (1.0, 2.0))
    depth = 1 + (GROUND_Y - ball - near) / (far - near)
    levels = ((depth - NEAREST) / (FARTHEST - NEAREST) * 65535).round().clip(0, 65535).astype(np.uint16)
    image = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    for number in range(samples):
        stem = f"{folder}/{number:03d}"
        Image.fromarray(levels).save(f"{stem}_depth.png")
        Image.fromarray(image).save(f"{stem}_image_4.png")
        np.savetxt(f"{stem}_pose.txt", POSE)
        Path(f"{stem}_info_depth.yaml").write_text(f"normalization: {{min: {NEAREST}, max: {FARTHEST}}}\n")
    return root


def _load(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    file = partial(sample_file, root, name)
    return read_depth(file("depth.png"), file("info_depth.yaml")), read_pose(file("pose.txt"))


def _repeated(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    seconds = []
    for _ in range(repeats):
        duration, result = timed(function)
        seconds.append(duration)
    return median(seconds), result


def _exactness(plain: tuple[np.ndarray, ...], ours: tuple[np.ndarray, ...]) -> str:
    kept = float(np.mean([cloud.any(axis=2).mean() for cloud in ours]))
    same = all(np.array_equal(a.any(axis=2), b.any(axis=2)) for a, b in zip(plain, ours, strict=True))
    error = max(float(np.abs(a - b).max()) for a, b in zip(plain, ours, strict=True))
    return f"kept pixels ({kept:.1%}) {'equal' if same else 'DIFFER'}, points within {error:.0e} m (float32)"


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the unpacked Eyecandies (default: a rendered scene)")
    parser.add_argument("--samples", type=int, default=3, help="how many (default %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=5, help="runs of the fast form, of which the median counts"
    )
    args = parser.parse_args()
    for row in run(args.data, args.samples, args.repeats):
        print(row)


if __name__ == "__main__":
    main()
