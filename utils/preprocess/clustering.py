"""DBSCAN on a grid, exact: the labels of the plain algorithm, hundreds of times faster on dense clouds."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

NOISE = -1
# A cell's diagonal is a hair shorter than eps, so that rounding never parts two points of one cell.
CELL_SIDE = (1 - 1e-6) / math.sqrt(3)  # in eps
REACH = 2  # points within eps of each other lie at most two cells apart on every axis: sqrt(3) < 2


class Grid(NamedTuple):
    """N points sorted into C cells; `row` and `column` are neighbours as ranges of cells, first and one past last.

    points (N, 3) float64, those of a cell together; order (N,): the caller's index of each; cell (N,): the cell
    of each; start (C + 1,): first point of each cell; beside (C, 9, 2), near (C, 25, 2): the neighbours up to
    one and up to REACH cells away, the cell itself among them.
    """

    points: np.ndarray
    order: np.ndarray
    cell: np.ndarray
    start: np.ndarray
    beside: np.ndarray
    near: np.ndarray


def dbscan(points: np.ndarray, eps: float, min_points: int) -> np.ndarray:
    """Cluster label of every point, (N,) int64: points (N, 3), finite; NOISE (-1) for points of no cluster.

    A point with at least `min_points` points nearer than `eps` (itself included) is a core point; core points
    nearer than `eps` share a cluster; clusters are numbered by their first core point in point order; another
    point near a core point belongs to the lowest-numbered such cluster (Ester et al. 1996, numbered as Open3D's
    `cluster_dbscan` and scikit-learn's `DBSCAN` do; like Open3D's, "nearer" excludes a distance of exactly eps).
    Raises ValueError when eps or min_points is not positive.
    """
    if not eps > 0 or min_points < 1:
        raise ValueError(f"eps={eps} and min_points={min_points}: eps must be above 0, min_points at least 1")
    if len(points) == 0:
        return np.empty(0, dtype=np.int64)
    grid = _build_grid(np.asarray(points, dtype=np.float64), eps * CELL_SIDE)
    squared_eps = eps * eps
    core = _core_points(grid, squared_eps, min_points)
    parent = np.arange(len(grid.near))  # union-find over cells: the core points of one cell are one cluster
    _unite(parent, grid, core, grid.beside, squared_eps)  # the cells beside first: few pairs are left then
    _unite(parent, grid, core, grid.near, squared_eps)
    return _labels(parent, grid, core, squared_eps)


def _build_grid(points: np.ndarray, side: float) -> Grid:
    keys, row_stride, plane_stride = _cell_keys(points, side)
    order = np.argsort(keys, kind="stable")
    cell_keys, first, cell = np.unique(keys[order], return_index=True, return_inverse=True)
    beside, near = (_neighbors(cell_keys, row_stride, plane_stride, reach) for reach in (1, REACH))
    return Grid(points[order], order, cell, np.append(first, len(points)), beside, near)


def _cell_keys(points: np.ndarray, side: float) -> tuple[np.ndarray, int, int]:
    """One integer per point that names its cell, and the key's step along the second and the first axis.

    Gaps between occupied cells are shortened to just beyond REACH on each axis, which changes no neighbourhood
    and keeps the keys small however far a stray point lies. The key's step along the third axis is 1.
    """
    index, size = [], []
    for axis in range(3):
        occupied, inverse = np.unique(np.floor(points[:, axis] / side), return_inverse=True)
        position = np.cumsum(np.minimum(np.diff(occupied, prepend=occupied[0]), REACH + 1)).astype(np.int64)
        index.append(position[inverse])
        size.append(int(position[-1]) + 1 + REACH)  # a margin, so that rows do not run into each other
    row_stride, plane_stride = size[2], size[1] * size[2]
    return index[0] * plane_stride + index[1] * row_stride + index[2], row_stride, plane_stride


def _neighbors(cell_keys: np.ndarray, row_stride: int, plane_stride: int, reach: int) -> np.ndarray:
    """Ranges of neighbouring cells, (C, (2 reach + 1)^2, 2): cells consecutive on the third axis are one range."""
    steps = np.arange(-reach, reach + 1)
    rows = cell_keys[:, None] + (steps[:, None] * plane_stride + steps * row_stride).ravel()
    first = np.searchsorted(cell_keys, rows - reach, side="left")
    last = np.searchsorted(cell_keys, rows + reach, side="right")
    return np.stack([first, last], axis=2)


@njit(cache=True)
def _squared_distance(points: np.ndarray, i: int, j: int) -> float:
    x = points[i, 0] - points[j, 0]
    y = points[i, 1] - points[j, 1]
    z = points[i, 2] - points[j, 2]
    return x * x + y * y + z * z


@njit(cache=True)
def _core_points(grid: Grid, squared_eps: float, min_points: int) -> np.ndarray:
    core: np.ndarray = np.zeros(len(grid.points), dtype=np.bool_)
    for i in range(len(core)):
        cell = grid.cell[i]
        crowded = grid.start[cell + 1] - grid.start[cell] >= min_points
        core[i] = crowded or _has_neighbors(grid, i, squared_eps, min_points)
    return core


@njit(cache=True)
def _has_neighbors(grid: Grid, i: int, squared_eps: float, wanted: int) -> bool:
    count = 0
    for first, last in grid.near[grid.cell[i]]:
        for j in range(grid.start[first], grid.start[last]):
            if _squared_distance(grid.points, i, j) < squared_eps:
                count += 1
                if count >= wanted:
                    return True
    return False


@njit(cache=True)
def _unite(
    parent: np.ndarray, grid: Grid, core: np.ndarray, neighbors: np.ndarray, squared_eps: float
) -> None:
    """Join the cells that hold core points nearer than eps to each other."""
    for cell in range(len(parent)):
        for first, last in neighbors[cell]:
            for other in range(max(cell + 1, first), last):
                a, b = _root(parent, cell), _root(parent, other)
                if a != b and _touch(grid, core, cell, other, squared_eps):
                    parent[max(a, b)] = min(a, b)


@njit(cache=True)
def _root(parent: np.ndarray, cell: int) -> int:
    while parent[cell] != cell:
        parent[cell] = parent[parent[cell]]
        cell = int(parent[cell])
    return cell


@njit(cache=True)
def _touch(grid: Grid, core: np.ndarray, cell: int, other: int, squared_eps: float) -> bool:
    for i in range(grid.start[cell], grid.start[cell + 1]):
        if core[i]:
            for j in range(grid.start[other], grid.start[other + 1]):
                if core[j] and _squared_distance(grid.points, i, j) < squared_eps:
                    return True
    return False


@njit(cache=True)
def _labels(parent: np.ndarray, grid: Grid, core: np.ndarray, squared_eps: float) -> np.ndarray:
    grid_index = np.empty_like(grid.order)
    grid_index[grid.order] = np.arange(len(grid.order))
    label_of_root = np.full(len(parent), NOISE)
    labels = np.full(len(core), NOISE)  # in the caller's order
    clusters = 0
    for i in grid_index:
        if core[i]:
            root = _root(parent, grid.cell[i])
            if label_of_root[root] == NOISE:
                label_of_root[root] = clusters
                clusters += 1
            labels[grid.order[i]] = label_of_root[root]
    for i in grid_index:
        if not core[i]:
            labels[grid.order[i]] = _border_label(grid, i, core, labels, squared_eps)
    return labels


@njit(cache=True)
def _border_label(grid: Grid, i: int, core: np.ndarray, labels: np.ndarray, squared_eps: float) -> int:
    """Lowest label among the core points near point i, which is no core point itself."""
    best = NOISE
    for first, last in grid.near[grid.cell[i]]:
        for j in range(grid.start[first], grid.start[last]):
            if core[j] and _squared_distance(grid.points, i, j) < squared_eps:
                label = labels[grid.order[j]]
                if best == NOISE or label < best:
                    best = label
    return best
