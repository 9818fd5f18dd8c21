"""Stand-ins for pointnet2_ops and knn_cuda, which need a GPU and its compiler: their signatures, checks and arithmetic.

As in the packages, the two functions of pointnet2_ops take positional arguments only, tensors must be contiguous and
float32 on the GPU, indices are int32 there and int64 in knn_cuda. The sampling fuses multiplications with additions and
settles ties between its threads; the search compares float32 distances, and takes the first of equals.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor, nn

MOST_THREADS = 512  # of pointnet2_ops' block
NEAR_ORIGIN = np.float32(1e-3)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import pointnet2_ops.pointnet2_utils` and `import knn_cuda` find the stand-ins."""
    package, utils, knn_cuda = map(ModuleType, ("pointnet2_ops", "pointnet2_ops.pointnet2_utils", "knn_cuda"))
    utils.furthest_point_sample = furthest_point_sample
    utils.gather_operation = gather_operation
    package.pointnet2_utils = utils
    knn_cuda.KNN = KNN
    for module in (package, utils, knn_cuda):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def furthest_point_sample(xyz: Tensor, npoint: int, /) -> Tensor:
    """(B, N, 3) -> (B, npoint) int32."""
    _check(xyz, torch.float32)
    assert type(npoint) is int
    chosen = np.stack([_sample(cloud, npoint) for cloud in xyz.cpu().numpy()])
    return torch.from_numpy(chosen).to(xyz.device)


def gather_operation(features: Tensor, idx: Tensor, /) -> Tensor:
    """(B, C, N), (B, npoint) int32 -> (B, C, npoint)."""
    _check(features, torch.float32)
    _check(idx, torch.int32)
    return torch.stack([cloud[:, index.long()] for cloud, index in zip(features, idx, strict=True)])


class KNN(nn.Module):
    """Indices of the k nearest, by ascending distance."""

    def __init__(self, k: int, transpose_mode: bool = False) -> None:
        super().__init__()
        self.k, self.transpose_mode = k, transpose_mode

    def forward(self, ref: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D), (B, G, D) -> distances, indices (B, G, k); unless transpose_mode, the axes after B are swapped."""
        assert ref.size(0) == query.size(0)
        if not self.transpose_mode:
            ref, query = ref.transpose(1, 2), query.transpose(1, 2)
        found = [self._search(*pair) for pair in zip(ref, query, strict=True)]
        distance, index = (torch.stack(parts) for parts in zip(*found, strict=True))
        if not self.transpose_mode:
            distance, index = distance.transpose(1, 2), index.transpose(1, 2)
        return distance.contiguous(), index.contiguous()

    def _search(self, ref: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        assert self.k <= len(ref)  # it would read beyond its memory
        _check(ref, torch.float32)
        _check(query, torch.float32)
        squared = sum(
            (query[:, None, axis] - ref[None, :, axis]) ** 2 for axis in range(ref.shape[1])
        )  # (G, N)
        nearest = squared.sort(dim=1, stable=True)
        return nearest.values[:, : self.k].sqrt(), nearest.indices[:, : self.k]


def _check(tensor: Tensor, dtype: torch.dtype) -> None:
    assert tensor.is_cuda
    assert tensor.is_contiguous()
    assert tensor.dtype == dtype


def _sample(points: np.ndarray, npoint: int) -> np.ndarray:
    threads = min(MOST_THREADS, 1 << int(np.log2(len(points))))
    return _sample_by_threads(np.ascontiguousarray(points), npoint, threads)


@njit(cache=True)
def _sample_by_threads(points: np.ndarray, npoint: int, threads: int) -> np.ndarray:
    """Each thread keeps the first of its farthest points; pairs of threads then agree, the lower one winning a tie."""
    nearest = np.full(len(points), 1e10, dtype=np.float32)
    chosen = np.zeros(npoint, dtype=np.int32)
    for step in range(1, npoint):
        best = np.full(threads, -1, dtype=np.float32)
        where = np.zeros(threads, dtype=np.int64)
        old = points[chosen[step - 1]]
        for k in range(len(points)):
            x, y, z = points[k]
            if x * x + y * y + z * z <= NEAR_ORIGIN:
                continue
            nearest[k] = min(nearest[k], _fused_square(x - old[0], y - old[1], z - old[2]))
            if nearest[k] > best[k % threads]:
                best[k % threads], where[k % threads] = nearest[k], k
        half = threads // 2
        while half:
            for thread in range(half):
                if best[thread + half] > best[thread]:
                    best[thread], where[thread] = best[thread + half], where[thread + half]
            half //= 2
        chosen[step] = where[0]
    return chosen


@njit(cache=True)
def _fused_square(dx: np.float32, dy: np.float32, dz: np.float32) -> np.float32:
    """fma(dz, dz, fma(dy, dy, dx * dx)): float64 holds each product exactly."""
    xy = np.float32(np.float64(dy) * np.float64(dy) + np.float64(dx * dx))
    return np.float32(np.float64(dz) * np.float64(dz) + np.float64(xy))
