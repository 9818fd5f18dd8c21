"""The nearest neighbours of every point of a cloud, in the very order in which Open3D's KD-tree returns them.

FPFH sums over neighbours in floating point and cuts at a count, so the order of neighbours at equal distance
decides last digits, and at the cut even members. Open3D searches with nanoflann: leaves of at most 15 points, the
nearer child first, and of equal distances the one met first stays first. The tree below has the same splits and is
walked in the same order. What makes it fast: a point's k-th distance plus the step to the next point bounds the
next point's k-th distance, so in the row-major order of an image every search starts with a tight bound.

(In the kernels, records instead of tuples of arrays and NumPy's error model keep reference counting out of loops.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

LEAF_SIZE = 15  # points, Open3D's setting of nanoflann
_SPAN_TOLERANCE = 1e-5  # nanoflann: box sides this much shorter than the longest still count as the longest
_LEAF = -1
_BUCKETS = 128
_BOUND_SLACK = 1.0 + 1e-9  # a bound need not be tight, only never too small

NODE = np.dtype(
    [
        ("first", np.int64),  # the node's range of the leaf points
        ("last", np.int64),
        ("axis", np.int64),  # split axis, -1 for a leaf
        ("child", np.int64),  # its lower child; the upper one follows
        ("low", np.float64),  # on the split axis, the largest coordinate of the lower child ...
        ("high", np.float64),  # ... and the smallest of the upper one
    ]
)
LEAF_POINT = np.dtype([("x", np.float64), ("y", np.float64), ("z", np.float64), ("index", np.int64)])
CANDIDATE = np.dtype([("distance2", np.float64), ("index", np.int64)])


class Neighbors(NamedTuple):
    """Neighbours of n points by ascending distance, the point itself (or a duplicate of it) first.

    found (n,) int64: how many; nearest (n, k) int32: which points; distance2 (n, k) float64, squared metres. Row i
    is valid up to found[i].
    """

    found: np.ndarray
    nearest: np.ndarray
    distance2: np.ndarray


def nearest_within(points: np.ndarray, radius: float, most: int) -> Neighbors:
    """For each of the points (n, 3) float64, n >= 1, finite: at most `most` nearest ones closer than `radius`."""
    nodes, leaf_points = build_tree(points)
    size, room = len(points), 4 * most + LEAF_SIZE
    neighbors = Neighbors(
        np.empty(size, np.int64), np.empty((size, most), np.int32), np.empty((size, most), np.float64)
    )
    candidates, spare = np.empty((2, room), CANDIDATE)
    stack, gaps = np.empty(len(nodes), np.int64), np.empty((len(nodes), 4))
    _search_all(points, nodes, leaf_points, radius, candidates, spare, stack, gaps, *neighbors)
    return neighbors


def build_tree(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KD-tree over points (n, 3) float64, n >= 1, with nanoflann's splits: its nodes, root first, and leaf points."""
    nodes, order = np.zeros(2 * len(points), NODE), np.arange(len(points))
    used = _grow(points, nodes, order)
    leaf_points = np.empty(len(points), LEAF_POINT)
    leaf_points["x"], leaf_points["y"], leaf_points["z"] = points[order].T
    leaf_points["index"] = order
    return nodes[:used], leaf_points


@njit(cache=True, error_model="numpy")
def _grow(points: np.ndarray, nodes: np.ndarray, order: np.ndarray) -> int:
    """Fill nodes and sort `order` into leaves; returns the number of nodes."""
    box = np.empty((len(nodes), 3, 2))
    for axis in range(3):
        box[0, axis] = _extent(points, order, 0, len(points), axis)
    nodes[0].last = len(points)
    node, used = 0, 1
    while node < used:
        first, last = nodes[node].first, nodes[node].last
        nodes[node].axis = _LEAF
        if last - first > LEAF_SIZE:
            axis, cut = _choose_cut(points, order, first, last, box[node])
            middle = _split(points, order, first, last, axis, cut)
            nodes[node].axis, nodes[node].child = axis, used
            nodes[node].low = _extent(points, order, first, middle, axis)[1]
            nodes[node].high = _extent(points, order, middle, last, axis)[0]
            nodes[used].first, nodes[used].last = first, middle
            nodes[used + 1].first, nodes[used + 1].last = middle, last
            box[used : used + 2] = box[node]
            box[used, axis, 1] = box[used + 1, axis, 0] = cut
            used += 2
        node += 1
    return used


@njit(cache=True, error_model="numpy")
def _extent(points: np.ndarray, order: np.ndarray, first: int, last: int, axis: int) -> tuple[float, float]:
    """Smallest and largest coordinate of the points order[first:last] on an axis."""
    low = high = points[order[first], axis]
    for i in range(first + 1, last):
        value = points[order[i], axis]
        low, high = min(low, value), max(high, value)
    return low, high


@njit(cache=True, error_model="numpy")
def _choose_cut(
    points: np.ndarray, order: np.ndarray, first: int, last: int, box: np.ndarray
) -> tuple[int, float]:
    """Split axis and value: the widest spread among the (nearly) longest box sides, cut in the box's middle."""
    longest = max(box[0, 1] - box[0, 0], box[1, 1] - box[1, 0], box[2, 1] - box[2, 0])
    widest, axis, low, high = -1.0, 0, 0.0, 0.0
    for candidate in range(3):
        if box[candidate, 1] - box[candidate, 0] > (1 - _SPAN_TOLERANCE) * longest:
            lowest, highest = _extent(points, order, first, last, candidate)
            if highest - lowest > widest:
                widest, axis, low, high = highest - lowest, candidate, lowest, highest
    middle = (box[axis, 0] + box[axis, 1]) / 2
    return axis, min(max(middle, low), high)


@njit(cache=True, error_model="numpy")
def _split(points: np.ndarray, order: np.ndarray, first: int, last: int, axis: int, cut: float) -> int:
    """Reorder order[first:last] by the cut; points on the cut go where they balance the halves best."""
    half = first + (last - first) // 2
    on_cut = _partition(points, order, first, last, axis, cut, False)
    above_cut = _partition(points, order, on_cut, last, axis, cut, True)
    return min(max(half, on_cut), above_cut)


@njit(cache=True, error_model="numpy")
def _partition(
    points: np.ndarray, order: np.ndarray, first: int, last: int, axis: int, cut: float, cut_is_low: bool
) -> int:
    """Bring the points below the cut to the front of order[first:last]; returns where the others begin."""
    left, right = first, last - 1
    while True:
        while left <= right and _is_low(points[order[left], axis], cut, cut_is_low):
            left += 1
        while left <= right and not _is_low(points[order[right], axis], cut, cut_is_low):
            right -= 1
        if left > right:
            return left
        order[left], order[right] = order[right], order[left]
        left += 1
        right -= 1


@njit(cache=True, error_model="numpy")
def _is_low(value: float, cut: float, cut_is_low: bool) -> bool:
    return value <= cut if cut_is_low else value < cut


@njit(cache=True, error_model="numpy")
def _search_all(
    points: np.ndarray,
    nodes: np.ndarray,
    leaf_points: np.ndarray,
    radius: float,
    candidates: np.ndarray,
    spare: np.ndarray,
    stack: np.ndarray,
    gaps: np.ndarray,
    found: np.ndarray,
    nearest: np.ndarray,
    distance2: np.ndarray,
) -> None:
    """Fill found, nearest and distance2; the four arrays before them are working memory."""
    most = nearest.shape[1]
    limit = bound = radius * radius
    for i in range(len(points)):
        query = points[i]
        count = _search(nodes, leaf_points, query, bound, most, candidates, spare, stack, gaps)
        found[i] = 0
        for k in range(count):
            nearest[i, k], distance2[i, k] = candidates[k].index, candidates[k].distance2
            found[i] += distance2[i, k] < limit
        bound = limit
        if count == most and i + 1 < len(points):
            x, y, z = points[i + 1, 0] - query[0], points[i + 1, 1] - query[1], points[i + 1, 2] - query[2]
            reach = math.sqrt(distance2[i, most - 1]) + math.sqrt(x * x + y * y + z * z)
            bound = min(limit, reach * reach * _BOUND_SLACK)


@njit(cache=True, error_model="numpy")
def _search(
    nodes: np.ndarray,
    leaf_points: np.ndarray,
    query: np.ndarray,
    bound: float,
    most: int,
    candidates: np.ndarray,
    spare: np.ndarray,
    stack: np.ndarray,
    gaps: np.ndarray,
) -> int:
    """Put the `most` nearest within squared distance `bound` into candidates, sorted; returns their number."""
    stack[0], gaps[0] = 0, 0.0
    count, top = 0, 1
    while top > 0:
        top -= 1
        if gaps[top, 3] <= bound:
            leaf, top = _descend(nodes, query, top, stack, gaps)
            count = _scan(leaf_points, nodes[leaf].first, nodes[leaf].last, query, bound, count, candidates)
            if count > len(candidates) - LEAF_SIZE:  # full: keep the best, which also tightens the bound
                _sort(candidates, spare, count)
                count = most
                bound = candidates[most - 1].distance2
    _sort(candidates, spare, count)
    return min(count, most)


@njit(cache=True, error_model="numpy")
def _descend(
    nodes: np.ndarray, query: np.ndarray, top: int, stack: np.ndarray, gaps: np.ndarray
) -> tuple[int, int]:
    """From the node on top of the stack to the leaf on the query's side, stacking far children; (leaf, new top).

    gaps (nodes, 4): squared distance from the query to a stacked node's box, along each axis and in all.
    """
    node = stack[top]
    along, total = (gaps[top, 0], gaps[top, 1], gaps[top, 2]), gaps[top, 3]
    while nodes[node].axis != _LEAF:
        axis, child = nodes[node].axis, nodes[node].child
        past_low, past_high = query[axis] - nodes[node].low, query[axis] - nodes[node].high
        goes_up = past_low + past_high >= 0
        gap = past_low * past_low if goes_up else past_high * past_high
        gaps[top, 0], gaps[top, 1], gaps[top, 2] = along
        gaps[top, 3] = total + gap - gaps[top, axis]
        gaps[top, axis] = gap
        stack[top] = child if goes_up else child + 1
        top += 1
        node = child + 1 if goes_up else child
    return node, top


@njit(cache=True, error_model="numpy")
def _scan(
    leaf_points: np.ndarray,
    first: int,
    last: int,
    query: np.ndarray,
    bound: float,
    count: int,
    candidates: np.ndarray,
) -> int:
    """Append the leaf's points within the bound to the first `count` candidates; returns their new number."""
    for i in range(first, last):
        x, y, z = query[0] - leaf_points[i].x, query[1] - leaf_points[i].y, query[2] - leaf_points[i].z
        distance2 = x * x + y * y + z * z
        candidates[count].distance2, candidates[count].index = distance2, leaf_points[i].index
        count += distance2 <= bound  # without a branch, which would be mispredicted half the time
    return count


@njit(cache=True, error_model="numpy")
def _sort(candidates: np.ndarray, spare: np.ndarray, count: int) -> None:
    """Sort the first `count` candidates by distance, equals in the order met: into buckets, then by insertion.

    On a surface squared distances are spread evenly, so that a bucket holds about one candidate.
    """
    largest = 0.0
    for i in range(count):
        largest = max(largest, candidates[i].distance2)
    if largest == 0:
        return
    start = np.zeros(_BUCKETS + 1, np.int64)
    for i in range(count):
        start[int(candidates[i].distance2 / largest * (_BUCKETS - 1)) + 1] += 1
    for bucket in range(_BUCKETS):
        start[bucket + 1] += start[bucket]
    for i in range(count):
        bucket = int(candidates[i].distance2 / largest * (_BUCKETS - 1))
        spare[start[bucket]] = candidates[i]
        start[bucket] += 1
    for i in range(count):
        place = i
        while place > 0 and candidates[place - 1].distance2 > spare[i].distance2:
            candidates[place] = candidates[place - 1]
            place -= 1
        candidates[place] = spare[i]
