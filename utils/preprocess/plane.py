"""Seeded RANSAC plane: the model, the choice and the stopping rule of Open3D's `segment_plane`, in batches of draws.

A plane is (a, b, c, d) float64 with a x + b y + c z + d = 0 and a unit normal (a, b, c), so that |a x + b y + c z + d|
is a distance in the points' unit.
"""

from __future__ import annotations

import math

import numpy as np

BATCH_DRAWS = 16  # planes rated together: 16 x 10 000 distances stay in the cache
STOP_PROBABILITY = 0.99999999  # that a draw of inliers only was among the draws so far (Open3D's default)
COLLINEAR = 1e-12  # second moment across a line over the one along it, below which a plane is not determined


def plane_distance(points: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """Distance of every point to one plane (4,) or to B planes (B, 4): (N, 3) -> (N,) or (B, N) float64."""
    # einsum adds in a fixed order whatever the number of BLAS threads, so results do not depend on it
    return np.abs(np.einsum("...k,nk->...n", plane[..., :3], points) + plane[..., 3:])


def fit_planes(points: np.ndarray) -> np.ndarray:
    """Least-squares plane of each of B sets of n points, (B, n, 3) -> (B, 4); NaN where the points are collinear.

    The residual is taken along the coordinate axis that the normal is nearest to, as Open3D does (not across the
    plane; the two differ by less than 1e-4 for a millimetre of noise over a decimetre).
    """
    center = points.mean(axis=1)
    offset = points - center[:, None]
    covariance = np.einsum("bni,bnj->bij", offset, offset)
    # Column k of the adjugate is the normal, up to its length, of the fit whose residual is along axis k.
    xx, xy, xz = (covariance[:, 0, k] for k in range(3))
    yy, yz, zz = covariance[:, 1, 1], covariance[:, 1, 2], covariance[:, 2, 2]
    adjugate = np.array(
        [
            [yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy],
            [xz * yz - xy * zz, xx * zz - xz * xz, xy * xz - xx * yz],
            [xy * yz - xz * yy, xy * xz - xx * yz, xx * yy - xy * xy],
        ]
    )  # (3, 3, B)
    axis = np.argmax(np.diagonal(adjugate), axis=1)
    normal = adjugate[axis, :, np.arange(len(axis))]
    collinear = adjugate.max(axis=(0, 1)) <= COLLINEAR * (xx + yy + zz) ** 2
    normal[collinear] = np.nan
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    return np.concatenate([normal, -np.einsum("bk,bk->b", normal, center)[:, None]], axis=1)


def ransac_plane(
    points: np.ndarray, distance: float, draw_size: int, max_draws: int, rng: np.random.Generator
) -> np.ndarray | None:
    """Plane (4,) of points (N, 3), refitted to its inliers, or None where there is none.

    Of up to `max_draws` least-squares planes through `draw_size` random points, the one with the most points nearer
    than `distance` wins, then the one with the smallest root mean square of their distances. Drawing stops early
    once a draw without outliers has almost surely been made. None: fewer than `draw_size` points, or all collinear.
    """
    if len(points) < draw_size:
        return None
    points = np.asarray(points, dtype=np.float64)
    best, best_rating, drawn, needed = None, (0, 0.0), 0, float(max_draws)
    while drawn < min(max_draws, needed):
        count = min(BATCH_DRAWS, max_draws - drawn)
        draws = np.stack([rng.choice(len(points), draw_size, replace=False) for _ in range(count)])
        plane, rating = _best_plane(points, fit_planes(points[draws]), distance)
        if rating > best_rating:
            best, best_rating = plane, rating
            needed = _needed_draws(rating[0] / len(points), draw_size)
        drawn += count
    if best is None:
        return None
    refitted = fit_planes(points[None, plane_distance(points, best) < distance])[0]
    return refitted if np.isfinite(refitted).all() else None


def _best_plane(
    points: np.ndarray, planes: np.ndarray, distance: float
) -> tuple[np.ndarray, tuple[int, float]]:
    """The best of B planes and its rating: number of inliers, then minus their mean squared distance."""
    residual = plane_distance(points, planes)  # (B, N); NaN for a plane that is not finite, and so no inlier
    inlier = residual < distance
    count = inlier.sum(axis=1)
    mean_square = np.einsum("bn,bn,bn->b", residual, residual, inlier) / np.maximum(count, 1)
    best = np.lexsort([mean_square, -count])[0]
    return planes[best], (int(count[best]), -float(mean_square[best]))


def _needed_draws(inlier_share: float, draw_size: int) -> float:
    """Draws after which one without an outlier was among them with STOP_PROBABILITY."""
    clean_draw = inlier_share**draw_size
    if clean_draw in (0.0, 1.0):
        return 0.0 if clean_draw else math.inf
    return math.log1p(-STOP_PROBABILITY) / math.log1p(-clean_draw)
