"""Open3D's FPFH, which models/fpfh must equal, and the synthetic clouds on which the two are compared.

`python -m tests.reference.fpfh` (with Open3D) rewrites tests/reference/goldens/fpfh.npz.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from models.fpfh.descriptors import FPFH_MAX_NN, FPFH_RADIUS_M
from models.fpfh.normals import NORMAL_MAX_NN, NORMAL_RADIUS_M
from utils.files import atomic_path

GOLDENS = Path(__file__).parent / "goldens" / "fpfh.npz"


def import_open3d() -> Any:
    """The open3d module; ImportError names the system packages that its wheel needs and does not bring."""
    try:
        import open3d
    except ImportError as error:
        raise ImportError(
            f"Open3D cannot be imported ({error}); on Debian and Ubuntu it needs "
            "`apt-get install libusb-1.0-0 libgl1 libgomp1 libx11-6`"
        ) from error
    return open3d


def open3d_fpfh(points: np.ndarray, normals: np.ndarray | None = None) -> np.ndarray:
    """FPFH (N, 33) float64 as BTF calls Open3D, with the given normals (N, 3) or Open3D's own."""
    open3d = import_open3d()
    search = open3d.geometry.KDTreeSearchParamHybrid
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(np.float64)))
    if normals is None:
        cloud.estimate_normals(search(radius=NORMAL_RADIUS_M, max_nn=NORMAL_MAX_NN))
    else:
        cloud.normals = open3d.utility.Vector3dVector(normals)
    compute = open3d.pipelines.registration.compute_fpfh_feature
    return compute(cloud, search(radius=FPFH_RADIUS_M, max_nn=FPFH_MAX_NN)).data.T.copy()


def open3d_neighbors(points: np.ndarray, radius: float, most: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices of each point's neighbours, in Open3D's order, and their squared distances."""
    open3d = import_open3d()
    tree = open3d.geometry.KDTreeFlann(points.T.astype(np.float64))
    found = [tree.search_hybrid_vector_xd(point.astype(np.float64), radius, most) for point in points]
    return [(np.asarray(nearest), np.asarray(distance2)) for _, nearest, distance2 in found]


def wavy_cloud(side: int, seed: int = 0) -> np.ndarray:
    """A noisy round relief half a metre from the camera, as a sensor of side x side pixels sees it, row-major."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[0:side, 0:side] / side - 0.5
    depth = 0.5 + 0.02 * np.sin(12 * u) * np.cos(9 * v) + 2e-4 * rng.standard_normal((side, side))
    inside = u**2 + v**2 < 0.2
    return np.stack([u * depth, v * depth, depth], axis=-1)[inside].astype(np.float32) * np.float32(0.4)


def lattice_cloud(size: int, seed: int = 0) -> np.ndarray:
    """Points of a coarse lattice, many of them twice: nearly all distances tie, exactly."""
    rng = np.random.default_rng(seed)
    return (rng.integers(1, 9, (size, 3)) / 64).astype(np.float32)


def sparse_cloud(seed: int = 0) -> np.ndarray:
    """Too few neighbours everywhere: a lone point, a pair, a triple, and 40 points 0.2 m apart on a line."""
    line = np.arange(40)[:, None] * np.array([0.2, 0.0, 0.0]) + np.array([0.0, 9.0, 1.0])
    few = np.random.default_rng(seed).random((6, 3)) * 0.1 + np.repeat(
        [[1, 1, 1], [3, 1, 1], [5, 1, 1]], [1, 2, 3], 0
    )
    return np.concatenate([few, line]).astype(np.float32)


CLOUDS = {"wavy": wavy_cloud(30), "sparse": sparse_cloud()}  # without exact ties


def main() -> None:
    """Write the goldens: each cloud's points and Open3D's features."""
    arrays: dict[str, Any] = {f"{name}.points": points for name, points in CLOUDS.items()}
    arrays |= {f"{name}.fpfh": open3d_fpfh(points) for name, points in CLOUDS.items()}
    with atomic_path(GOLDENS) as temporary:
        np.savez_compressed(temporary, **arrays)


if __name__ == "__main__":
    main()
