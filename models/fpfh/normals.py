"""Nearest neighbours of a cloud's points, and the normals they span, as Open3D estimates them.

Normals take the same operations in the same order, to the last bit: the eigenvector of the smallest eigenvalue of the
neighbourhood's covariance, by the closed form of Eberly, "A Robust Eigensolver for 3x3 Symmetric Matrices". Nothing
orients it: which of its two signs comes out is up to the arithmetic, and FPFH depends on it, hence the care.
Symmetric matrices travel as (xx, xy, xz, yy, yz, zz).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from scipy.spatial import KDTree

Triple = tuple[float, float, float]
Symmetric = tuple[float, float, float, float, float, float]

NORMAL_RADIUS_M = 0.1  # BTF: twice its voxel size of 0.05 m
NORMAL_MAX_NN = 30  # BTF

_MIN_NEIGHBORS = 3  # Open3D: with fewer, the covariance counts as the identity
_NORMAL_OF_IDENTITY = (0.0, 0.0, 1.0)
_TWO_THIRDS_PI = 2.09439510239319549


class Neighbors(NamedTuple):
    """Neighbours of n points by ascending distance, the point itself (or a duplicate of it) first.

    found (n,) int64: how many; nearest (n, k) int64: which points; distance2 (n, k) float64, squared metres. Row i
    is valid up to found[i]. Neighbours at exactly the same distance are in no particular order, and which of them
    stay when k are too few is as arbitrary; Open3D may choose others there.
    """

    found: np.ndarray
    nearest: np.ndarray
    distance2: np.ndarray


def nearest_within(points: np.ndarray, radius: float, most: int) -> Neighbors:
    """For each of the points (n, 3) float64, n >= 1, finite: at most `most` >= 2 nearest ones closer than `radius`."""
    _, nearest = KDTree(points).query(points, most, distance_upper_bound=radius)  # n stands for "none"
    found = (nearest < len(points)).sum(axis=1)
    distance2 = np.empty(nearest.shape)
    _sort_by_distance2(points, found, nearest, distance2)
    return Neighbors(found, nearest, distance2)


@njit(cache=True)
def _sort_by_distance2(
    points: np.ndarray, found: np.ndarray, nearest: np.ndarray, distance2: np.ndarray
) -> None:
    """Fill distance2 and sort both rows by it; they are in order but for distances whose roots round to one."""
    for i in range(len(points)):
        for k in range(found[i]):
            j = nearest[i, k]
            away = (points[i, 0] - points[j, 0], points[i, 1] - points[j, 1], points[i, 2] - points[j, 2])
            squared, place = dot(away, away), k
            while place > 0 and distance2[i, place - 1] > squared:
                distance2[i, place], nearest[i, place] = distance2[i, place - 1], nearest[i, place - 1]
                place -= 1
            distance2[i, place], nearest[i, place] = squared, j


@njit(cache=True, error_model="numpy")
def estimate_normals(points: np.ndarray, neighbors: Neighbors) -> np.ndarray:
    """Unit normals (n, 3) float64 of points (n, 3) float64, each from its 30 nearest closer than 0.1 m.

    `neighbors` holds at least those (itself searched with no smaller radius and number). Where fewer than three
    are found the normal is (0, 0, 1).
    """
    normals = np.empty_like(points)
    for i in range(len(points)):
        found = min(neighbors.found[i], NORMAL_MAX_NN)
        count = np.searchsorted(neighbors.distance2[i, :found], NORMAL_RADIUS_M * NORMAL_RADIUS_M)
        if count < _MIN_NEIGHBORS:
            normals[i] = _NORMAL_OF_IDENTITY
        else:
            normals[i] = smallest_eigenvector(_covariance(points, neighbors.nearest[i, :count]))
    return normals


@njit(cache=True, error_model="numpy")
def _covariance(points: np.ndarray, index: np.ndarray) -> Symmetric:
    """Mean of products less product of means, over points[index] in that order."""
    count = len(index)
    x_sum = y_sum = z_sum = xx = xy = xz = yy = yz = zz = 0.0
    for i in index:
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        x_sum, y_sum, z_sum = x_sum + x, y_sum + y, z_sum + z
        xx, xy, xz = xx + x * x, xy + x * y, xz + x * z
        yy, yz, zz = yy + y * y, yz + y * z, zz + z * z
    x, y, z = x_sum / count, y_sum / count, z_sum / count
    return (
        xx / count - x * x,
        xy / count - x * y,
        xz / count - x * z,
        yy / count - y * y,
        yz / count - y * z,
        zz / count - z * z,
    )


@njit(cache=True, error_model="numpy")
def smallest_eigenvector(matrix: Symmetric) -> Triple:
    """Unit eigenvector of the smallest eigenvalue of a symmetric matrix; (0, 0, 1) for the zero matrix."""
    xx, xy, xz, yy, yz, zz = matrix
    scale = max(xx, xy, xz, yy, yz, zz)
    if scale == 0:
        return _NORMAL_OF_IDENTITY
    m = (xx / scale, xy / scale, xz / scale, yy / scale, yz / scale, zz / scale)
    if not m[1] * m[1] + m[2] * m[2] + m[4] * m[4] > 0:
        return _smallest_axis(xx, yy, zz)
    low, middle, high, high_is_apart = _eigenvalues(m)
    if high_is_apart:
        high_vector = _outer_eigenvector(m, high)
        middle_vector = _middle_eigenvector(m, high_vector, middle)
        return middle_vector if middle < low else cross(middle_vector, high_vector)
    low_vector = _outer_eigenvector(m, low)
    if low < middle:
        return low_vector
    middle_vector = _middle_eigenvector(m, low_vector, middle)
    return middle_vector if middle < low else cross(low_vector, middle_vector)


@njit(cache=True)
def _smallest_axis(xx: float, yy: float, zz: float) -> Triple:
    """The coordinate axis of the strictly smallest diagonal element, z where there is none."""
    if xx < yy and xx < zz:
        return 1.0, 0.0, 0.0
    if yy < xx and yy < zz:
        return 0.0, 1.0, 0.0
    return 0.0, 0.0, 1.0


@njit(cache=True, error_model="numpy")
def _eigenvalues(m: Symmetric) -> tuple[float, float, float, bool]:
    """Eigenvalues, ascending, and whether the largest stands farther apart from the middle one than the smallest."""
    xx, xy, xz, yy, yz, zz = m
    mean = (xx + yy + zz) / 3
    x, y, z = xx - mean, yy - mean, zz - mean
    off_diagonal = xy * xy + xz * xz + yz * yz
    spread = math.sqrt((x * x + y * y + z * z + off_diagonal * 2) / 6)
    minor_x, minor_y, minor_z = y * z - yz * yz, xy * z - yz * xz, xy * yz - y * xz
    determinant = (x * minor_x - xy * minor_y + xz * minor_z) / (spread * spread * spread)
    half = min(max(determinant * 0.5, -1.0), 1.0)
    angle = math.acos(half) / 3
    high = math.cos(angle) * 2
    low = math.cos(angle + _TWO_THIRDS_PI) * 2
    middle = -(low + high)
    return mean + spread * low, mean + spread * middle, mean + spread * high, half >= 0


@njit(cache=True, error_model="numpy")
def _outer_eigenvector(m: Symmetric, value: float) -> Triple:
    """Eigenvector of an eigenvalue that stands apart: the longest cross product of two rows of m - value."""
    xx, xy, xz, yy, yz, zz = m
    row0, row1, row2 = (xx - value, xy, xz), (xy, yy - value, yz), (xz, yz, zz - value)
    longest = cross(row0, row1)
    length2 = dot(longest, longest)
    for other in (cross(row0, row2), cross(row1, row2)):
        other_length2 = dot(other, other)
        if other_length2 > length2:
            longest, length2 = other, other_length2
    return divide(longest, math.sqrt(length2))


@njit(cache=True, error_model="numpy")
def _middle_eigenvector(m: Symmetric, outer: Triple, value: float) -> Triple:
    """Eigenvector of the middle eigenvalue, sought in the plane (u, v) perpendicular to the outer eigenvector."""
    if abs(outer[0]) > abs(outer[1]):
        inverse = 1 / math.sqrt(outer[0] * outer[0] + outer[2] * outer[2])
        u = (-outer[2] * inverse, 0.0, outer[0] * inverse)
    else:
        inverse = 1 / math.sqrt(outer[1] * outer[1] + outer[2] * outer[2])
        u = (0.0, outer[2] * inverse, -outer[1] * inverse)
    v = cross(outer, u)
    mu, mv = _times(m, u), _times(m, v)
    uu, uv, vv = dot(u, mu) - value, dot(u, mv), dot(v, mv) - value
    if max(abs(uu), abs(uv), abs(vv)) == 0:
        return u
    if abs(uu) >= abs(vv):
        diagonal, off = _unit(uu, uv)
        return off * u[0] - diagonal * v[0], off * u[1] - diagonal * v[1], off * u[2] - diagonal * v[2]
    diagonal, off = _unit(vv, uv)
    return diagonal * u[0] - off * v[0], diagonal * u[1] - off * v[1], diagonal * u[2] - off * v[2]


@njit(cache=True, error_model="numpy")
def _unit(a: float, b: float) -> tuple[float, float]:
    """(a, b) scaled to length one, up to sign."""
    if abs(a) >= abs(b):
        b /= a
        a = 1 / math.sqrt(1 + b * b)
        return a, b * a
    a /= b
    b = 1 / math.sqrt(1 + a * a)
    return a * b, b


@njit(cache=True)
def _times(m: Symmetric, u: Triple) -> Triple:
    xx, xy, xz, yy, yz, zz = m
    return dot((xx, xy, xz), u), dot((xy, yy, yz), u), dot((xz, yz, zz), u)


@njit(cache=True)
def dot(a: Triple, b: Triple) -> float:
    """Inner product, summed from the first component on."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True)
def cross(a: Triple, b: Triple) -> Triple:
    """Cross product a x b."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@njit(cache=True, error_model="numpy")
def divide(a: Triple, divisor: float) -> Triple:
    """a / divisor, component by component; NaN or infinite where the divisor is zero."""
    return a[0] / divisor, a[1] / divisor, a[2] / divisor
