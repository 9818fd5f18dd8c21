"""The frozen networks of a method, with the weights they are to have."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from feature_extractors.settings import Settings
from feature_extractors.weights import WeightsSource, check_files
from models.backbones import CloudEncoder, PointOps
from models.uff.block import FusionBlock, load_fusion_block, random_fusion_block
from utils.resources import sha256_of

NO_WEIGHTS = "none needed"
RANDOM = "random"


@dataclass(frozen=True)
class Networks:
    """The networks that a method needs, on their device; the others are None.

    origins: where the weights of each modality are from, files with their checksums.
    """

    rgb: nn.Module | None
    xyz: CloudEncoder | None
    fusion: FusionBlock | None
    origins: dict[str, str]


def load_networks(
    settings: Settings, weights: WeightsSource, device: torch.device, point_ops: PointOps = "cpu"
) -> Networks:
    """Load what the method needs; random weights are drawn by `settings.seed`.

    Raises ValueError when `point_ops` can't be had, and CheckpointError: missing files are all named at once, before
    any is read.
    """
    check_point_ops(settings, device, point_ops)
    check_files(settings, weights)
    needed = settings.method.backbones
    origins: dict[str, str] = {}
    rgb = xyz = fusion = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if "rgb" in needed:
            path = weights.backbone(settings.rgb_backbone.download)
            rgb = settings.rgb_backbone.build(settings.img_size, path).to(device)
            origins["rgb"] = _origin(path, settings)
        if "xyz" in needed:
            row = settings.xyz_backbone
            path = weights.backbone(row.download)
            options = dataclasses.replace(settings.xyz_options, point_ops=point_ops)
            xyz = row.build(options, path).to(device)
            origins["xyz"] = _origin(path, settings) if row.download else NO_WEIGHTS
    if "fusion" in settings.method.sources:
        path = weights.fusion()
        fusion = _fusion_block(settings, path).to(device)
        origins["fusion"] = _origin(path, settings)
    return Networks(rgb, xyz, fusion, origins)


def check_point_ops(settings: Settings, device: torch.device, point_ops: PointOps) -> None:
    """Raises ValueError naming the flag when the groups of points can't be made so."""
    if point_ops == "cpu":
        return
    if point_ops != "cuda":
        raise ValueError(f"--point_ops {point_ops}: use cpu or cuda")
    if "xyz" not in settings.method.backbones or not settings.xyz_backbone.grouped:
        raise ValueError(f"--point_ops cuda: --method_name {settings.method_name} groups no points; drop it")
    if device.type != "cuda":
        raise ValueError(
            f"--point_ops cuda: needs a GPU, and the networks are on the {device}; use --point_ops cpu"
        )
    from models.point_transformer.cuda_point_ops import load_cuda_point_ops

    load_cuda_point_ops()


def _fusion_block(settings: Settings, path: Path | None) -> FusionBlock:
    dims = {"xyz_dim": settings.xyz_backbone.dim, "rgb_dim": settings.rgb_backbone.dim}
    return load_fusion_block(path, **dims) if path else random_fusion_block(**dims, seed=settings.seed)


def _origin(path: Path | None, settings: Settings) -> str:
    return f"{path.name} sha256:{sha256_of(path)}" if path else f"{RANDOM}, seed {settings.seed}"


def attention() -> str:
    """Which attention timm computes: "fused" or "explicit" (TIMM_FUSED_ATTN=0); features differ in the last digits."""
    from timm.layers import use_fused_attn

    return "fused" if use_fused_attn() else "explicit"
