"""The frozen networks of a method, with the weights they are to have."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from feature_extractors.settings import Settings
from models.point_transformer.transformer import PointTransformer
from models.point_transformer.weights import POINT_WEIGHTS, load_point_transformer, random_point_transformer
from models.uff.block import FusionBlock, load_fusion_block, random_fusion_block
from models.vit import VITS, load_vit, random_vit
from utils.resources import sha256_of

NO_WEIGHTS = "none needed"
RANDOM = "random"


@dataclass
class Networks:
    """The networks that a method needs; the others are None (FPFH has none).

    sources: where the weights of each modality are from.
    """

    rgb: nn.Module | None = None
    xyz: PointTransformer | None = None
    fusion: FusionBlock | None = None
    sources: dict[str, str] = field(default_factory=dict)


def load_networks(settings: Settings, checkpoint_dir: Path | None, fusion_path: Path | None) -> Networks:
    """Load what the method needs: the backbones from `checkpoint_dir`, UFF from `fusion_path`.

    None in the place of a path means random weights, drawn by `settings.seed`. Raises CheckpointError.
    """
    spec, networks = settings.method, Networks()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if spec.uses_rgb:
            networks.rgb, networks.sources["rgb"] = _rgb_network(settings, checkpoint_dir)
        if spec.uses_xyz and settings.xyz_backbone_name == "FPFH":
            networks.sources["xyz"] = NO_WEIGHTS
        elif spec.uses_xyz:
            networks.xyz, networks.sources["xyz"] = _xyz_network(settings, checkpoint_dir)
    if spec.uses_fusion:
        networks.fusion, networks.sources["fusion"] = _fusion_network(settings, fusion_path)
    return networks


def _rgb_network(settings: Settings, folder: Path | None) -> tuple[nn.Module, str]:
    name, size = settings.rgb_backbone_name, settings.img_size
    if folder is None:
        return random_vit(name, size), _random(settings)
    path = VITS[name].download.path_in(folder)
    network = load_vit(name, folder, size)
    return network, _file(path) if path.is_file() else f"timm {VITS[name].timm_name}"


def _xyz_network(settings: Settings, folder: Path | None) -> tuple[PointTransformer, str]:
    name, batchnorm = settings.xyz_backbone_name, settings.quirks.batchnorm
    drop_path = settings.quirks.drop_path == "live"
    if folder is None:
        network = random_point_transformer(name, batchnorm=batchnorm, drop_path=drop_path)
        return network, _random(settings)
    network = load_point_transformer(name, folder, batchnorm=batchnorm, drop_path=drop_path)
    return network, _file(POINT_WEIGHTS[name].download.path_in(folder))


def _fusion_network(settings: Settings, path: Path | None) -> tuple[FusionBlock, str]:
    rgb_dim = VITS[settings.rgb_backbone_name].dim
    if path is None:
        return random_fusion_block(settings.xyz_dim, rgb_dim, settings.seed), _random(settings)
    return load_fusion_block(path, xyz_dim=settings.xyz_dim, rgb_dim=rgb_dim), _file(path)


def _random(settings: Settings) -> str:
    return f"{RANDOM}, seed {settings.seed}"


def _file(path: Path) -> str:
    return f"{path.name} sha256:{sha256_of(path)}"
