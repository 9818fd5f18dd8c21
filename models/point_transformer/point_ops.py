"""Operations on the points of one cloud: farthest point sampling, groups of nearest neighbours.

NumPy in and out and on one thread, so that they can run in a DataLoader's workers.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from scipy.spatial import KDTree

from utils.structures import PointGroups

MIN_SQUARED_NORM = 1e-3  # m^2; nearer to the origin pointnet2_ops takes a point for padding
POINTS_PER_CELL = 48  # aimed at; fastest of 8..64 at 7k, 20k and 50k points
MAX_CELLS_PER_AXIS = 128
LEAF_SIZE = 32  # of the k-d tree, measured
ZERO = np.float32(0)


def farthest_points(points: np.ndarray, n: int) -> np.ndarray:
    """Farthest point sampling: indices (n,) int64 into points (N, 3), which are in metres.

    Starts at index 0; next is always the point of largest squared distance to those chosen, the lowest index
    among equals. Distances are float32, (dx * dx + dy * dy) + dz * dz, rounded after each operation. As in
    pointnet2_ops, a point whose squared norm is at most 1e-3 is never chosen after the start; where no other
    is left, an index repeats. ValueError unless 1 <= n <= N and all coordinates are finite.
    """
    points = np.asarray(points, dtype=np.float32)
    if not 1 <= n <= len(points):
        raise ValueError(f"cannot choose {n} of {len(points)} points")
    check_finite(points)
    coordinates = np.ascontiguousarray(points.T)
    allowed = np.flatnonzero((coordinates * coordinates).sum(axis=0) > MIN_SQUARED_NORM)
    if len(allowed) == 0:
        return np.zeros(n, dtype=np.int64)
    order, first = _sort_into_cells(coordinates.take(allowed, axis=1))
    index = allowed[order]
    return _sample(coordinates.take(index, axis=1), index, first, coordinates[:, 0].copy(), n)


def check_finite(points: np.ndarray) -> None:
    """Raises ValueError where a coordinate is NaN or infinite."""
    if not np.isfinite(points).all():
        raise ValueError("points hold NaN or infinite coordinates; remove them before sampling")


def group_points(points: np.ndarray, num_group: int, group_size: int) -> PointGroups:
    """Groups of nearest neighbours around the farthest points of a cloud (N, 3), in metres.

    min(num_group, N) centres, each with its min(group_size, N) nearest points (itself among them) in ascending
    order of Euclidean distance. ValueError if the cloud is empty.
    """
    if len(points) == 0:
        raise ValueError("the cloud has no points to group")
    centers = points[farthest_points(points, min(num_group, len(points)))]
    ranks = np.arange(1, min(group_size, len(points)) + 1)
    tree = KDTree(points, leafsize=LEAF_SIZE, balanced_tree=False)
    _, neighbors = tree.query(centers, k=ranks)
    return PointGroups(points[neighbors] - centers[:, None], centers)


@njit(cache=True)
def _sort_into_cells(coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort points into the cubes of a grid that, for a surface, hold POINTS_PER_CELL points on average.

    coordinates (3, n) -> order (n,), ascending within a cell, and first (cells + 1,): the occupied cells'
    bounds in that order.
    """
    cell, num_cells = _cells(coordinates)
    count = np.zeros(num_cells + 1, dtype=np.int64)
    for i in range(len(cell)):
        count[cell[i] + 1] += 1
    position = np.cumsum(count)
    first = np.unique(position)
    order = np.empty(len(cell), dtype=np.int64)
    for i in range(len(cell)):
        order[position[cell[i]]] = i
        position[cell[i]] += 1
    return order, first


@njit(cache=True)
def _cells(coordinates: np.ndarray) -> tuple[np.ndarray, int]:
    """Number of the grid cell of each point, (n,), and how many cells there are."""
    n = coordinates.shape[1]
    low = np.array([coordinates[axis].min() for axis in range(3)]).astype(np.float64)
    extent = np.array([coordinates[axis].max() for axis in range(3)]).astype(np.float64) - low
    _, middle, largest = np.sort(extent)
    side = max(np.sqrt(largest * middle * POINTS_PER_CELL / n), largest / MAX_CELLS_PER_AXIS)
    cell = np.zeros(n, dtype=np.int64)
    num_cells = 1
    if side == 0:  # all points are one
        return cell, num_cells
    for axis in range(3):
        cells_on_axis = int(extent[axis] / side) + 1
        for i in range(n):
            cell[i] = cell[i] * cells_on_axis + int((coordinates[axis, i] - low[axis]) / side)
        num_cells *= cells_on_axis
    return cell, num_cells


@njit(cache=True)
def _bounding_boxes(coordinates: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates in each cell, (3, cells) each."""
    num_cells = len(first) - 1
    low = np.empty((3, num_cells), dtype=np.float32)
    high = np.empty((3, num_cells), dtype=np.float32)
    for axis in range(3):
        for cell in range(num_cells):
            inside = coordinates[axis, first[cell] : first[cell + 1]]
            low[axis, cell] = inside.min()
            high[axis, cell] = inside.max()
    return low, high


@njit(cache=True)
def _sample(
    coordinates: np.ndarray, index: np.ndarray, first: np.ndarray, start: np.ndarray, n: int
) -> np.ndarray:
    """Farthest point sampling over points (3, N) sorted into cells; `index` names them in the result.

    A cell is measured anew only if its box is nearer to the newest centre than its farthest point is to all
    centres so far. Rounding is monotone, so the box's rounded distance bounds the points' rounded distances,
    and nothing is lost.
    """
    low, high = _bounding_boxes(coordinates, first)
    num_cells = len(first) - 1
    distance = np.full(len(index), np.inf, dtype=np.float32)  # squared, to the nearest centre
    farthest = np.full(num_cells, np.inf, dtype=np.float32)  # the largest of each cell, and where
    where = first[:-1].copy()
    box_distance = np.empty(num_cells, dtype=np.float32)
    chosen = np.zeros(n, dtype=np.int64)
    x, y, z = start
    for k in range(1, n):
        _measure_boxes(low, high, x, y, z, box_distance)
        best = 0
        for cell in range(num_cells):
            if box_distance[cell] < farthest[cell]:
                where[cell] = _approach(coordinates, first[cell], first[cell + 1], x, y, z, distance)
                farthest[cell] = distance[where[cell]]
            if farthest[cell] > farthest[best] or (
                farthest[cell] == farthest[best] and index[where[cell]] < index[where[best]]
            ):
                best = cell
        chosen[k] = index[where[best]]
        x, y, z = coordinates[:, where[best]]
    return chosen


@njit(cache=True)
def _measure_boxes(
    low: np.ndarray, high: np.ndarray, x: float, y: float, z: float, box_distance: np.ndarray
) -> None:
    """Write the squared distance of (x, y, z) to each box, 0 inside, into box_distance (cells,)."""
    for cell in range(len(box_distance)):
        dx = max(max(low[0, cell] - x, x - high[0, cell]), ZERO)
        dy = max(max(low[1, cell] - y, y - high[1, cell]), ZERO)
        dz = max(max(low[2, cell] - z, z - high[2, cell]), ZERO)
        box_distance[cell] = dx * dx + dy * dy + dz * dz


@njit(cache=True)
def _approach(
    coordinates: np.ndarray, begin: int, end: int, x: float, y: float, z: float, distance: np.ndarray
) -> int:
    """Lower the squared distances (N,) of points begin..end-1 of (3, N) to those from (x, y, z).

    Returns which of these points is now the farthest, the first among equals.
    """
    farthest, largest = begin, np.float32(-1)
    for i in range(begin, end):
        dx, dy, dz = coordinates[0, i] - x, coordinates[1, i] - y, coordinates[2, i] - z
        nearest = min(distance[i], dx * dx + dy * dy + dz * dz)
        distance[i] = nearest
        if nearest > largest:
            farthest, largest = i, nearest
    return farthest
