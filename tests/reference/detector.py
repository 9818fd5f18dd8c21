"""One sample and one bank as the released code works: every patch dense, every step by itself, nothing shared.

The twins of extraction, of fitting a bank and of scoring, for `benchmarks/end_to_end.py`.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from sklearn.random_projection import SparseRandomProjection
from torch import Tensor, nn

from feature_extractors.networks import Networks
from models.point_transformer.encoder import PointTransformerEncoder
from models.point_transformer.group_encoder import GroupEncoder
from models.uff.block import FusionBlock
from tests.reference.alignment import plain_patches
from tests.reference.coreset import plain_greedy_coreset, torch_norm
from tests.reference.point_ops import plain_farthest_points, plain_neighbors
from tests.reference.point_transformer import plain_group_tokens
from utils.structures import Modality, Sample

IMAGE_SIDE, XYZ_SIDE, RGB_SIDE = 224, 56, 28
NUM_GROUP, GROUP_SIZE = 1024, 128
BLUR_RADIUS = 4
JL_EPS = 0.9


class PlainEncoder(nn.Module):
    """The group encoder layer by layer, with the parameters of `encoder`."""

    def __init__(self, encoder: GroupEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, groups: Tensor) -> Tensor:
        return torch.stack([plain_group_tokens(self.encoder, cloud) for cloud in groups])


def plain_networks(networks: Networks) -> Networks:
    """The same networks with the group encoder layer by layer."""
    assert isinstance(networks.xyz, PointTransformerEncoder)
    network = copy.copy(networks.xyz.network)
    network._modules = {**network._modules, "encoder": PlainEncoder(network.encoder)}
    return replace(networks, xyz=replace(networks.xyz, network=network))


def plain_groups(points: np.ndarray) -> tuple[Tensor, Tensor]:
    """Groups (1, G, M, 3) and centres (1, G, 3) by brute force."""
    centers = points[plain_farthest_points(points, NUM_GROUP)]
    groups = points[plain_neighbors(points, centers, GROUP_SIZE)] - centers[:, None]
    return torch.from_numpy(groups)[None], torch.from_numpy(centers)[None]


def plain_rgb_patches(network: nn.Module, sample: Sample) -> Tensor:
    return network(torch.from_numpy(sample.image)[None])[0]  # (784, 768)


def plain_xyz_patches(sample: Sample, centers: Tensor, tokens: Tensor) -> Tensor:
    pixels = sample.pixel_index
    return plain_patches(
        sample.points, pixels, centers[0].numpy(), tokens[0], image_size=IMAGE_SIDE, side=XYZ_SIDE
    )  # (3136, 1152)


def plain_fused(block: FusionBlock, xyz: Tensor, rgb: Tensor) -> Tensor:
    """(3136, 1920) of (3136, 1152) and (784, 768)."""
    grid = rgb.T.reshape(1, -1, RGB_SIDE, RGB_SIDE)
    return block.fuse(xyz, F.adaptive_avg_pool2d(grid, XYZ_SIDE)[0].flatten(1).T)


@torch.inference_mode()
def plain_features(networks: Networks, sample: Sample) -> dict[Modality, Tensor]:
    """All three kinds of dense patches; `networks` are `plain_networks`."""
    assert networks.rgb is not None
    assert isinstance(networks.xyz, PointTransformerEncoder)
    assert networks.fusion is not None
    groups, centers = plain_groups(sample.points)
    rgb = plain_rgb_patches(networks.rgb, sample)
    xyz = plain_xyz_patches(sample, centers, networks.xyz.network(groups, centers))
    return {"xyz": xyz, "rgb": rgb, "fusion": plain_fused(networks.fusion, xyz, rgb)}


def plain_projection(rows: np.ndarray) -> np.ndarray:
    """The random projection of all rows (n, D), for distances within JL_EPS."""
    return SparseRandomProjection(eps=JL_EPS, random_state=0).fit_transform(rows)


def plain_coreset_choices(rows: Tensor, count: int) -> Tensor:
    """`count` greedy choices in float16, one pass over all rows each."""
    return plain_greedy_coreset(rows, count, dtype="float16", norm=torch_norm)


@torch.inference_mode()
def plain_score(patches: Tensor, bank: Tensor) -> tuple[float, np.ndarray]:
    """Image score and map of dense patches (P, D) against a bank (n, D): all distances at once, PIL's blur."""
    distance, nearest = torch.cdist(patches, bank).min(dim=1)
    worst = int(distance.argmax())
    around = torch.cdist(bank[nearest[worst]][None], bank)[0].topk(3, largest=False).indices[1:]
    radii = torch.linalg.norm(patches[worst] - bank[around], dim=1)
    root = patches.shape[1] ** 0.5
    weight = 1 - torch.exp(distance[worst] / root) / torch.exp(radii / root).sum()
    side = int(len(patches) ** 0.5)
    smooth = F.interpolate(
        distance.reshape(1, 1, side, side), size=IMAGE_SIDE, mode="bilinear", align_corners=False
    )
    return float(weight * distance[worst]), _blurred(smooth[0, 0].numpy())


def _blurred(image: np.ndarray) -> np.ndarray:
    peak = image.max()
    gray = Image.fromarray((image / peak * 255).astype(np.uint8))
    return np.asarray(gray.filter(ImageFilter.GaussianBlur(BLUR_RADIUS)), dtype=np.float32) / 255 * peak
