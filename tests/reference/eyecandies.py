"""Eyecandies' geometry pixel by pixel, as M3DM's release goes about it: the plain twin of utils/eyecandies.py."""

from __future__ import annotations

import numpy as np


def plain_object_cloud(depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Organised cloud (H, W, 3) float64 of a depth image (H, W) seen from `pose` (4, 4)."""
    height, width = depth.shape
    flat = plain_points(depth, pose).reshape(-1, 3)
    dz = flat[width // 2][1] - flat[-width // 2][1]
    dy = flat[width // 2][2] - flat[-width // 2][2]
    cos, sin = dy / np.hypot(dz, dy), dz / np.hypot(dz, dy)
    rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    origin = np.array([0, flat[-width // 2][1], flat[-width // 2][2]])
    cloud = np.zeros_like(flat)
    for i, point in enumerate(flat):
        turned = rotation @ (point - origin)
        if turned[1] > -0.02 or turned[2] > 1.8 or abs(turned[0]) > 1:
            continue
        x, y, z = rotation.T @ turned + origin
        cloud[i] = 0.1 * x, -0.1 * z, 0.1 * y
    return cloud.reshape(height, width, 3)


def plain_points(depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """World points (H, W, 3) of a depth image (H, W), one matrix product a pixel."""
    height, width = depth.shape
    focal = 711.11 * width / 512
    camera = np.array([[focal, 0, width / 2, 0], [0, focal, height / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    back = np.linalg.inv(camera @ pose)
    points = np.zeros((height, width, 3))
    for v in range(height):
        for u in range(width):
            points[v, u] = (depth[v, u] * (back @ np.array([u, v, 1, 1 / depth[v, u]])))[:3]
    return points
