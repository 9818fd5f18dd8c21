"""Farthest point sampling and nearest neighbours by brute force; the twins of the kernels on points."""

from __future__ import annotations

import numpy as np
import torch


def plain_farthest_points(points: np.ndarray, n: int) -> np.ndarray:
    """Indices (n,) of a farthest point sampling of points (N, 3): one pass over all points a step."""
    cloud = torch.from_numpy(points)
    allowed = (cloud * cloud).sum(1) > 1e-3
    distance = torch.full((len(cloud),), torch.inf)
    chosen = [0]
    for _ in range(n - 1):
        square = (cloud - cloud[chosen[-1]]) ** 2
        distance = torch.minimum(distance, square[:, 0] + square[:, 1] + square[:, 2])
        chosen.append(int(torch.where(allowed, distance, -1.0).argmax()))
    return np.array(chosen)


def plain_neighbors(points: np.ndarray, centers: np.ndarray, group_size: int) -> np.ndarray:
    """Indices (G, group_size) of each centre's nearest points, ascending: all distances, then top-k."""
    cloud = torch.from_numpy(points)
    neighbors = []
    for center in torch.from_numpy(centers).split(64):
        squared = ((center[:, None] - cloud) ** 2).sum(2)  # (64, N)
        neighbors.append(squared.topk(group_size, largest=False).indices)
    return torch.cat(neighbors).numpy()


def wavy_surface(num_points: int, seed: int = 0) -> np.ndarray:
    """A square patch of a rippled surface as a depth sensor sees it, 0.5 m away; (num_points, 3) float32."""
    random = np.random.RandomState(seed)
    side = int(np.ceil(np.sqrt(num_points)))
    v, u = np.meshgrid(np.linspace(-0.06, 0.06, side), np.linspace(-0.06, 0.06, side), indexing="ij")
    depth = 0.5 + 0.02 * np.sin(40 * u) * np.cos(30 * v) + random.normal(0, 2e-4, u.shape)
    return np.stack([u, v, depth], axis=2).reshape(-1, 3)[:num_points].astype(np.float32)
