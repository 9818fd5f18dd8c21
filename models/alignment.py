"""Point feature alignment (PFA, M3DM section 3.2): from tokens of point groups to patches of the image grid.

Interpolation to the points, scattering to their pixels, the 3x3 mean and the adaptive pooling are linear in the
tokens, so one sparse matrix, 3 to 7 centres for a patch that has points, does what the released code does
through a map of 1152 channels at full image size.

Alphabet: N points, G centres, S image side, P = side * side patches, U patches that some point reaches.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from scipy.sparse import csr_array, kron
from scipy.spatial import KDTree
from torch import Tensor

from utils.structures import AlignmentOperator, Patches

Interpolation = Literal["exact", "cancelling"]

INTERPOLATION_NEIGHBORS = 3
DISTANCE_EPS = 1e-8  # m^2, PointNet++ feature propagation
MEAN_WINDOW = 3
POINTS_AT_ONCE = 512  # minimum chunk: BLAS rounds very small products differently


def alignment_operator(
    points: np.ndarray,
    pixel_index: np.ndarray,
    centers: np.ndarray,
    *,
    image_size: int,
    side: int,
    interpolation: Interpolation = "exact",
) -> AlignmentOperator:
    """PFA of one cloud as a sparse matrix from group tokens to patches.

    points (N, 3) and centers (G, 3) in metres; pixel_index (N,), where each point stands in the row-major
    image of image_size * image_size, ascending. ValueError if pixel_index does not ascend within the image or
    is not as long as points.
    """
    _check_pixels(points, pixel_index, image_size)
    weight, center = interpolation_weights(points, centers, interpolation)
    entries_before = np.zeros(image_size**2 + 1, dtype=np.int64)
    entries_before[pixel_index + 1] = weight.shape[1]
    interpolate = csr_array(
        (weight.ravel(), center.ravel(), entries_before.cumsum()), shape=(image_size**2, len(centers))
    )
    patches = _pooling_matrix(image_size, side) @ interpolate
    row_length = np.diff(patches.indptr)
    patch_of_row = np.flatnonzero(row_length)
    return AlignmentOperator(
        patch_of_row=patch_of_row,
        crow=np.append(0, row_length[patch_of_row].cumsum()),
        col=patches.indices.astype(np.int64),
        value=patches.data.astype(np.float32),
        side=side,
        num_group=len(centers),
    )


def align(operator: AlignmentOperator, tokens: Tensor) -> Patches:
    """Apply PFA to the tokens (G, C) of a cloud, on their device; rows are float32 whatever the tokens are.

    Patches that no point reaches share one row of zeros, the last. ValueError if the number of tokens is not
    that of the operator's groups.
    """
    if len(tokens) != operator.num_group:
        raise ValueError(f"{len(tokens)} tokens for an operator on {operator.num_group} groups")
    col, crow, value, patch_of_row = (
        torch.from_numpy(array).to(tokens.device)
        for array in (operator.col, operator.crow, operator.value, operator.patch_of_row)
    )
    rows = F.embedding_bag(
        col, tokens.float(), crow, mode="sum", per_sample_weights=value, include_last_offset=True
    )  # (U, C): the weighted sum of each row's tokens
    num_rows, num_patches = len(rows), operator.side**2
    row_of_patch = torch.full((num_patches,), num_rows, device=tokens.device)
    row_of_patch[patch_of_row] = torch.arange(num_rows, device=tokens.device)
    if num_rows < num_patches:
        rows = F.pad(rows, (0, 0, 0, 1))
    return Patches(rows, row_of_patch, operator.side)


def pool_points(features: np.ndarray, pixel_index: np.ndarray, *, image_size: int, side: int) -> Patches:
    """Features (N, C) of points, brought to the image grid as BTF does, in their own precision.

    Scattered to their pixels (N,) of a map of image_size * image_size, 3x3 mean, adaptive average pool: by
    torch's own operations, whose order of summation decides published digits (the float16 coreset is chaotic).
    """
    image = torch.zeros(image_size**2, features.shape[1], dtype=torch.from_numpy(features).dtype)
    image[torch.from_numpy(pixel_index)] = torch.from_numpy(features)
    image = image.T.reshape(1, -1, image_size, image_size).contiguous()
    pooled = F.adaptive_avg_pool2d(F.avg_pool2d(image, MEAN_WINDOW, stride=1), side)
    return _with_one_empty_row(pooled[0].flatten(1).T, side)  # (1, C, side, side) -> (P, C)


def _with_one_empty_row(dense: Tensor, side: int) -> Patches:
    occupied = (dense != 0).any(dim=1)
    count = int(occupied.sum())
    row_of_patch = torch.where(occupied, occupied.cumsum(0) - 1, count)
    rows = dense[occupied]
    return Patches(F.pad(rows, (0, 0, 0, 1)) if count < len(dense) else rows, row_of_patch, side)


def interpolation_weights(
    points: np.ndarray, centers: np.ndarray, interpolation: Interpolation = "exact"
) -> tuple[np.ndarray, np.ndarray]:
    """How each point (N, 3) takes its feature from the centres (G, 3): weights (N, k) and which centres (N, k).

    The k = min(3, G) nearest centres, weighted by 1 / (d^2 + 1e-8), normalised. "exact": float64 distances;
    "cancelling": float32 ones that cancel, see `_nearest_centers_cancelling`.
    """
    nearest = _nearest_centers if interpolation == "exact" else _nearest_centers_cancelling
    squared_distance, center = nearest(points, centers)
    weight = 1 / (squared_distance + DISTANCE_EPS)
    return weight / weight.sum(axis=1, keepdims=True), center


def _check_pixels(points: np.ndarray, pixel_index: np.ndarray, image_size: int) -> None:
    if len(points) != len(pixel_index):
        raise ValueError(f"{len(points)} points but {len(pixel_index)} pixel indices")
    bounded = np.concatenate([[-1], pixel_index, [image_size**2]])
    if not (np.diff(bounded) > 0).all():
        raise ValueError(f"pixel_index must ascend strictly within 0..{image_size**2 - 1}")


def _nearest_centers(points: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances (N, k) float64 to the k = min(3, G) nearest centres, and which those are (N, k)."""
    ranks = np.arange(1, min(INTERPOLATION_NEIGHBORS, len(centers)) + 1)
    distance, center = KDTree(centers).query(points, k=ranks)
    return distance**2, center


def _nearest_centers_cancelling(points: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_nearest_centers`, by the released a^2 + b^2 - 2ab in float32 over all N x G pairs.

    The terms cancel: d^2 is wrong by some 1e-7 m^2, now and then negative, and other centres may seem nearest.
    Some of them tie, and then torch's sort decides, as in the release: a coreset feels the difference.
    """
    parts = np.array_split(points, max(1, len(points) // POINTS_AT_ONCE))
    found = [_nearest_of_part_cancelling(part, centers) for part in parts]
    squared_distance, center = zip(*found, strict=True)
    return np.concatenate(squared_distance), np.concatenate(center)


def _nearest_of_part_cancelling(points: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    point, center = torch.from_numpy(points), torch.from_numpy(centers)
    product = point @ center.T  # torch's product, whose rounding the released figures have
    point_squares, center_squares = (point**2).sum(dim=1), (center**2).sum(dim=1)
    count = min(INTERPOLATION_NEIGHBORS, len(centers))
    smallest, index = _smallest_shifted(
        product.numpy(), point_squares.numpy(), center_squares.numpy(), min(count + 1, len(centers))
    )
    tied = np.flatnonzero((np.diff(smallest) == 0).any(axis=1))
    squared = -2 * product[tied] + point_squares[tied, None] + center_squares
    index[tied, :count] = squared.sort(dim=1).indices[:, :count].numpy()
    return smallest[:, :count], index[:, :count]


@njit(cache=True)
def _smallest_shifted(
    product: np.ndarray, row_squares: np.ndarray, column_squares: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` smallest of -2 * product + row_squares + column_squares in each row, ascending, and where.

    product (N, G), row_squares (N,), column_squares (G,), all float32, added in this order.
    """
    rows, columns = product.shape
    smallest = np.full((rows, count), np.inf, dtype=np.float32)
    index = np.zeros((rows, count), dtype=np.int64)
    for i in range(rows):
        for j in range(columns):
            value = np.float32(np.float32(-2) * product[i, j] + row_squares[i]) + column_squares[j]
            if value < smallest[i, count - 1]:
                place = count - 1
                while place > 0 and value < smallest[i, place - 1]:
                    smallest[i, place] = smallest[i, place - 1]
                    index[i, place] = index[i, place - 1]
                    place -= 1
                smallest[i, place], index[i, place] = value, j
    return smallest, index


@lru_cache(maxsize=8)
def _pooling_matrix(image_size: int, side: int) -> csr_array:
    """The 3x3 mean (stride 1, no padding) and the adaptive average pool as one matrix (P, S * S).

    Both act on rows and columns alike and apart, so the matrix is a Kronecker square.
    """
    pooled = image_size - MEAN_WINDOW + 1
    mean = sum(np.eye(pooled, image_size, offset) for offset in range(MEAN_WINDOW)) / MEAN_WINDOW
    along_axis = csr_array(_adaptive_average(pooled, side) @ mean)
    return csr_array(kron(along_axis, along_axis))


def _adaptive_average(size: int, bins: int) -> np.ndarray:
    """Adaptive average pooling as a matrix (bins, size); bin i is floor(i s / b) up to ceil((i + 1) s / b)."""
    weights = np.zeros((bins, size))
    for i in range(bins):
        begin, end = i * size // bins, -(-(i + 1) * size // bins)
        weights[i, begin:end] = 1 / (end - begin)
    return weights
