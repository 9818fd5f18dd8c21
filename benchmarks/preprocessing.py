"""Preprocessing against the released way with Open3D's functions, in one run.

    python benchmarks/preprocessing.py [--samples 6] [--num_workers 2] [--data FOLDER]

FOLDER is a raw data set in MVTec 3D-AD's layout (default: mvtec3d in the folder that M3DM_REAL_DATA names, else
generated scenes of 400 x 400 points). Without Open3D's system libraries DBSCAN alone is compared, with
scikit-learn's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import DBSCAN

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.timing import time_row, timed
from tests.reference.preprocessing import (
    OPEN3D,
    make_scene,
    plain_dbscan,
    plain_plane,
    plain_preprocess_sample,
)
from utils.image_files import encode_png, encode_xyz, read_rgb, read_xyz, write_png, write_xyz
from utils.preprocess.clustering import dbscan
from utils.preprocess.plane import plane_distance
from utils.preprocess.sample import Parameters, background_plane, preprocess_sample
from utils.preprocessing import find_samples, preprocess_dataset, sample_files

EPS_M, MIN_POINTS = Parameters().cluster_eps, Parameters().cluster_min_points
SCENE_SIDE, SCENE_PITCH_M = 400, 5e-4


def run(data: Path | None = None, samples: int = 6, num_workers: int = 2) -> list[dict[str, Any]]:
    """Rows of the benchmark table: seconds a sample (medians), and of a whole data set."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "raw"
        _gather_samples(data, root, samples)
        files = [sample_files(name) for name in find_samples(root)]
        scenes = [(read_xyz(root / file["xyz"]), read_rgb(root / file["rgb"])) for file in files]
        _ours(*scenes[0])  # compile
        rows = [_dbscan_row(scenes, "scikit-learn", _scikit_learn_dbscan)]
        if OPEN3D is not None:
            rows += [_dbscan_row(scenes, "Open3D", plain_dbscan), _plane_row(scenes), _sample_row(scenes)]
            rows.append(_data_set_row(root, Path(folder), num_workers))
    return rows


def _gather_samples(data: Path | None, root: Path, count: int) -> None:
    """`count` samples spread over the data set, or generated, as a data set of their own."""
    names = find_samples(data) if data else []
    for number in range(count):
        target = sample_files(f"part/train/good/{number:03}")
        if data:
            source = sample_files(names[number * len(names) // count])
            cloud, image = read_xyz(data / source["xyz"]), read_rgb(data / source["rgb"])
        else:
            cloud, image, _ = make_scene(
                SCENE_SIDE, SCENE_SIDE, np.random.default_rng(number), pitch=SCENE_PITCH_M
            )
        write_xyz(root / target["xyz"], cloud)
        write_png(root / target["rgb"], image)


def _dbscan_row(
    scenes: list[Any], whose: str, plain: Callable[[np.ndarray, float, int], np.ndarray]
) -> dict[str, Any]:
    clouds = [_points_above_plane(cloud) for cloud, _ in scenes]
    size = f"{int(np.median([len(points) for points in clouds]))} points"
    times, results = _compare(plain, dbscan, [(points, EPS_M, MIN_POINTS) for points in clouds])
    equal = all(np.array_equal(a, b) for a, b in results)
    return time_row(f"DBSCAN, {whose}'s", size, *times, "equal labels" if equal else "LABELS DIFFER")


def _plane_row(scenes: list[Any]) -> dict[str, Any]:
    times, results = _compare(plain_plane, _our_plane, [(cloud,) for cloud, _ in scenes])
    worst = max(float(np.abs(_upright(a) - _upright(b)).max()) for a, b in results)
    return time_row("background plane, Open3D's", "border strips", *times, f"coefficients within {worst:.0e}")


def _sample_row(scenes: list[Any]) -> dict[str, Any]:
    times, results = _compare(plain_preprocess_sample, _ours, scenes)
    worst, same_colors = 1.0, True
    for (plain_cloud, plain_image), (cloud, image) in results:
        plain_kept, kept = plain_cloud.any(axis=2), cloud.any(axis=2)
        worst = min(worst, np.count_nonzero(plain_kept & kept) / np.count_nonzero(plain_kept | kept))
        same_colors &= np.array_equal(plain_image[plain_kept == kept], image[plain_kept == kept])
    exactness = f"IoU of kept pixels >= {worst:.5f}, rgb {'equal' if same_colors else 'DIFFERS'}"
    return time_row("preprocessing a sample, Open3D's functions", _size(scenes), *times, exactness)


def _data_set_row(root: Path, folder: Path, num_workers: int) -> dict[str, Any]:
    names = find_samples(root)

    def plain() -> list[tuple[np.ndarray, np.ndarray]]:
        results = []
        for file in map(sample_files, names):
            cloud, image = plain_preprocess_sample(read_xyz(root / file["xyz"]), read_rgb(root / file["rgb"]))
            (folder / "plain.tiff").write_bytes(encode_xyz(cloud))
            (folder / "plain.png").write_bytes(encode_png(image))
            results.append((cloud, image))
        return results

    def ours() -> None:
        preprocess_dataset(root, folder / "ours", Parameters(), num_workers, progress=False)

    times, [(results, _)] = _compare(plain, ours, [()])
    equal = sum(
        np.array_equal(read_xyz(folder / "ours" / file["xyz"]), cloud)
        and np.array_equal(read_rgb(folder / "ours" / file["rgb"]), image)
        for file, (cloud, image) in zip(map(sample_files, names), results, strict=True)
    )
    part = f"preprocessing a data set, serial Open3D against {num_workers} processes"
    size = f"{len(names)} samples, files read and written"
    return time_row(part, size, *times, f"{equal} of {len(names)} samples equal")


def _compare(
    plain: Callable[..., Any], ours: Callable[..., Any], cases: list[Any]
) -> tuple[tuple[float, float], list[tuple[Any, Any]]]:
    """Median seconds of both over the cases, taken in turn, and their results."""
    seconds: tuple[list[float], list[float]] = ([], [])
    results = []
    for case in cases:
        pair = []
        for function, taken in zip((plain, ours), seconds, strict=True):
            duration, result = timed(partial(function, *case))
            taken.append(duration)
            pair.append(result)
        results.append((pair[0], pair[1]))
    return (statistics.median(seconds[0]), statistics.median(seconds[1])), results


def _our_plane(cloud: np.ndarray) -> np.ndarray:
    plane = background_plane(cloud, Parameters(), np.random.default_rng(0))
    if plane is None:
        raise ValueError("a sample without a background plane: choose raw samples with --data")
    return plane


def _ours(cloud: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return preprocess_sample(cloud, image, Parameters(), np.random.default_rng(0))[:2]


def _points_above_plane(cloud: np.ndarray) -> np.ndarray:
    points = cloud[cloud.all(axis=2)]
    return points[plane_distance(points, _our_plane(cloud)) >= Parameters().background_distance]


def _scikit_learn_dbscan(points: np.ndarray, eps: float, min_points: int) -> np.ndarray:
    return DBSCAN(eps=eps, min_samples=min_points).fit(points.astype(np.float64)).labels_


def _upright(plane: np.ndarray) -> np.ndarray:
    return plane * np.sign(plane[2])


def _size(scenes: list[Any]) -> str:
    height, width = scenes[0][0].shape[:2]
    return f"{len(scenes)} samples of {height} x {width}"


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    real = os.environ.get("M3DM_REAL_DATA")
    parser.add_argument("--data", type=Path, default=Path(real) / "mvtec3d" if real else None)
    parser.add_argument("--samples", type=int, default=6, help="samples to measure (default 6)")
    parser.add_argument(
        "--num_workers", type=int, default=2, help="processes of the data set row (default 2)"
    )
    args = parser.parse_args()
    for row in run(args.data, args.samples, args.num_workers):
        print(row)


if __name__ == "__main__":
    main()
