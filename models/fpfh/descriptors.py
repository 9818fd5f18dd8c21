"""FPFH: 33 numbers a point that tell how normals turn around it (Rusu et al., ICRA 2009), as BTF uses them.

BTF (arXiv 2203.05550) takes Open3D's implementation; this one gives the float64 values of Open3D 0.20, on one thread,
to the last bit wherever no two neighbours of a point stand at exactly the same distance. Every pair of neighbours
yields three angles; a point's SPFH is their three histograms of 11 bins over its neighbours, each summing to 100; its
FPFH is its own SPFH plus its neighbours' mean SPFH, weighted by 1 / distance^2.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from models.fpfh.normals import Neighbors, Triple, cross, divide, dot, estimate_normals, nearest_within

FPFH_RADIUS_M = 0.25  # BTF: five times its voxel size
FPFH_MAX_NN = 100  # BTF
HISTOGRAMS = 3
BINS = 11  # a histogram
FPFH_DIMS = HISTOGRAMS * BINS

_LANES = 4  # the three histograms side by side, bin by bin; an idle fourth makes a bin one vector register
_BINS_PER_RADIAN = BINS / (2 * math.pi)
_EDGE_MARGIN = 1e-3  # bins; the quick arctangent errs by less than 1e-4

# Rows of the table of pair features.
_TURN, _SINE, _COSINE, _TILT, _SLOPE = range(5)


def fpfh_features(points: np.ndarray) -> np.ndarray:
    """FPFH features (N, 33) float64 of `points` (N, 3), in metres, not centred: the points that exist, in any order.

    Equal to Open3D's `estimate_normals` (0.1 m, 30 neighbours) and `compute_fpfh_feature` (0.25 m, 100 neighbours) of
    the points as float64, except where neighbours stand at exactly the same distance; every value is within 0..200.
    A point without another one closer than 0.25 m gets zeros, an empty cloud (0, 33). Raises ValueError for another
    shape and for non-finite points.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points have shape {points.shape}; FPFH needs (N, 3), one row a point that exists")
    if not np.isfinite(points).all():
        raise ValueError("points hold NaN or infinity; drop those pixels before computing FPFH")
    if len(points) == 0:
        return np.zeros((0, FPFH_DIMS))
    points = np.ascontiguousarray(points, np.float64)
    neighbors = nearest_within(points, FPFH_RADIUS_M, FPFH_MAX_NN)
    normals = estimate_normals(points, neighbors)
    return weigh_histograms(pair_histograms(points, normals, neighbors), neighbors)


@njit(cache=True)
def pair_histograms(points: np.ndarray, normals: np.ndarray, neighbors: Neighbors) -> np.ndarray:
    """SPFH (n, 44): the lane (see _LANES) of bin b and histogram h is column 4 b + h."""
    spfh = np.zeros((len(points), BINS * _LANES))
    cloud = np.concatenate((points, normals), axis=1)
    most = neighbors.nearest.shape[1]
    others, features = np.empty((6, most)), np.empty((5, most))
    for i in range(len(points)):
        others_count = neighbors.found[i] - 1  # the first is the point itself
        if others_count > 0:
            for k in range(others_count):
                for column in range(6):
                    others[column, k] = cloud[neighbors.nearest[i, k + 1], column]
            _pair_features(cloud[i], others, others_count, features)
            _count_pairs(features, others_count, spfh[i])
    return spfh


@njit(cache=True, error_model="numpy")
def _pair_features(point: np.ndarray, others: np.ndarray, count: int, features: np.ndarray) -> None:
    """Features of a point (x, y, z, normal) with each of `others` (6, count); free of branches, so it vectorises."""
    position, normal = (point[0], point[1], point[2]), (point[3], point[4], point[5])
    x, y, z, nx, ny, nz = others[0], others[1], others[2], others[3], others[4], others[5]
    turn, sine, cosine, tilt, slope = features[0], features[1], features[2], features[3], features[4]
    for k in range(count):
        away = (x[k] - position[0], y[k] - position[1], z[k] - position[2])
        sine[k], cosine[k], tilt[k], slope[k] = _pair_angles(away, normal, (nx[k], ny[k], nz[k]))
        turn[k] = (_quick_arctan2(sine[k], cosine[k]) + math.pi) * _BINS_PER_RADIAN


@njit(cache=True, error_model="numpy")
def _pair_angles(away: Triple, normal: Triple, other: Triple) -> tuple[float, float, float, float]:
    """Sine and cosine of the turn, tilt and slope of a pair of normals, `away` being the way to the other point.

    The frame stands on the point whose normal is nearer to the line between the two (releases before 0.20 may take
    the other where the angles are within rounding); all angles are 0 where points coincide or that normal lies on
    the line.
    """
    distance = math.sqrt(dot(away, away))
    slope, other_slope = dot(normal, away) / distance, dot(other, away) / distance
    swap = abs(slope) < abs(other_slope)
    sign = -1.0 if swap else 1.0
    u = (_pick(swap, other[0], normal[0]), _pick(swap, other[1], normal[1]), _pick(swap, other[2], normal[2]))
    n = (_pick(swap, normal[0], other[0]), _pick(swap, normal[1], other[1]), _pick(swap, normal[2], other[2]))
    side = cross((sign * away[0], sign * away[1], sign * away[2]), u)
    side_length = math.sqrt(dot(side, side))
    v = divide(side, side_length)
    w = cross(u, v)
    defined = distance != 0 and side_length != 0
    return (
        _pick(defined, dot(w, n), 0.0),
        _pick(defined, dot(u, n), 1.0),
        _pick(defined, dot(v, n), 0.0),
        _pick(defined, _pick(swap, -other_slope, slope), 0.0),
    )


@njit(cache=True)
def _pick(condition: bool, yes: float, no: float) -> float:
    return yes if condition else no


@njit(cache=True, error_model="numpy")
def _quick_arctan2(y: float, x: float) -> float:
    """Angle of (x, y) within 1e-5 rad, by Abramowitz and Stegun 4.4.49; NaN at the origin."""
    steep = abs(y) > abs(x)
    ratio = _pick(steep, abs(x), abs(y)) / _pick(steep, abs(y), abs(x))
    square = ratio * ratio
    angle = 0.0208351
    for coefficient in (-0.0851330, 0.1801410, -0.3302995, 0.9998660):
        angle = angle * square + coefficient
    angle *= ratio
    angle = _pick(steep, math.pi / 2 - angle, angle)
    angle = _pick(x < 0, math.pi - angle, angle)
    return _pick(y < 0, -angle, angle)


@njit(cache=True)
def _count_pairs(features: np.ndarray, count: int, spfh: np.ndarray) -> None:
    """Add each pair to the three histograms of a row of SPFH, 100 shared equally among the pairs."""
    share = 100.0 / count
    for k in range(count):
        turn = features[_TURN, k]
        if not abs(turn - math.floor(turn) - 0.5) < 0.5 - _EDGE_MARGIN:  # too near an edge, or NaN: exactly
            angle = math.atan2(features[_SINE, k], features[_COSINE, k])
            turn = BINS * (angle + math.pi) / (2.0 * math.pi)
        spfh[_LANES * _bin(turn)] += share
        spfh[_LANES * _bin(BINS * (features[_TILT, k] + 1.0) * 0.5) + 1] += share
        spfh[_LANES * _bin(BINS * (features[_SLOPE, k] + 1.0) * 0.5) + 2] += share


@njit(cache=True)
def _bin(position: float) -> int:
    """The bin at a position of 0..11, the last for 11 and beyond, the first for what is below and for NaN."""
    return min(int(position), BINS - 1) if position > 0 else 0


@njit(cache=True, error_model="numpy")
def weigh_histograms(spfh: np.ndarray, neighbors: Neighbors) -> np.ndarray:
    """FPFH (n, 33), histogram after histogram, from SPFH in lanes (n, 44)."""
    fpfh = np.zeros((len(spfh), FPFH_DIMS))
    weighted, total = np.empty(spfh.shape[1]), np.empty(spfh.shape[1])
    for i in range(len(spfh)):
        total[:] = 0
        turn_sum = tilt_sum = slope_sum = 0.0
        for k in range(1, neighbors.found[i]):
            if neighbors.distance2[i, k] == 0:
                continue
            _add_weighted(spfh[neighbors.nearest[i, k]], neighbors.distance2[i, k], weighted, total)
            for lane in range(0, len(weighted), _LANES):
                turn_sum += weighted[lane]
                tilt_sum += weighted[lane + 1]
                slope_sum += weighted[lane + 2]
        for h, histogram_sum in enumerate((turn_sum, tilt_sum, slope_sum)):
            scale = 100.0 / histogram_sum if histogram_sum != 0 else 0.0
            for b in range(BINS):
                fpfh[i, h * BINS + b] = total[b * _LANES + h] * scale + spfh[i, b * _LANES + h]
    return fpfh


@njit(cache=True, error_model="numpy")
def _add_weighted(row: np.ndarray, distance2: float, weighted: np.ndarray, total: np.ndarray) -> None:
    """weighted = row / distance2, added to total; a function of its own so that it vectorises."""
    for lane in range(len(weighted)):
        value = row[lane] / distance2
        weighted[lane] = value
        total[lane] += value
