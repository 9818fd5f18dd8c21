"""PFA step by step through the full-size feature map, as published; the twin of the sparse operator."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def plain_patches(
    points: np.ndarray,
    pixel_index: np.ndarray,
    centers: np.ndarray,
    tokens: Tensor,
    *,
    image_size: int,
    side: int,
) -> Tensor:
    """Patches (side * side, C) of tokens (G, C), every step in the tokens' dtype; d^2 = a^2 + b^2 - 2ab."""
    point, center = torch.from_numpy(points).to(tokens), torch.from_numpy(centers).to(tokens)
    squared = -2 * (point @ center.T) + (point**2).sum(1)[:, None] + (center**2).sum(1)  # (N, G)
    squared, order = squared.sort(dim=1)
    weight = 1 / (squared[:, :3] + 1e-8)
    weight = weight / weight.sum(1, keepdim=True)
    feature = (tokens[order[:, :3]] * weight[..., None]).sum(1)  # (N, 3, C) -> (N, C)

    feature_map = tokens.new_zeros(tokens.shape[1], image_size * image_size)
    feature_map[:, torch.from_numpy(pixel_index)] = feature.T
    feature_map = feature_map.view(1, -1, image_size, image_size)
    pooled = F.adaptive_avg_pool2d(F.avg_pool2d(feature_map, 3, stride=1), side)
    return pooled[0].flatten(1).T
