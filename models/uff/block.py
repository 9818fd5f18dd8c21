"""UFF, the unsupervised feature fusion block (M3DM, "Unsupervised Feature Fusion")."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from models.checkpoints import (
    CheckpointError,
    check_shapes,
    entry,
    is_plain_tensor,
    load_complete,
    read_torch_file,
    subset,
)
from models.downloads import UFF

HIDDEN_RATIO = 4  # M3DM: 1152 -> 4608 -> 1152 and 768 -> 3072 -> 768
HEAD_DIM = 256  # M3DM: both modalities are compared in 256 dimensions
LARGEST_HIDDEN_RATIO, LARGEST_HEAD_DIM = 64, 2**14  # of a file that is believed

REMEDY = f"train a fusion block with fusion_pretrain.py, or {UFF.remedy()}, and name its file with --fusion_module_path"
BACKBONE_REMEDY = (
    "the block was trained for other backbones: choose those with --rgb_backbone_name and "
    "--xyz_backbone_name, or a block trained for these"
)


class Mlp(nn.Module):
    """Linear, GELU, linear; the names of the layers are those of the released checkpoints."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class FusionBlock(nn.Module):
    """Turns xyz and rgb patches into fused ones; two heads, for training only, bring both to one space.

    Parameters are registered in the order of the released block, because an optimiser's state knows them
    by their position.
    """

    def __init__(
        self, xyz_dim: int, rgb_dim: int, hidden_ratio: int = HIDDEN_RATIO, head_dim: int = HEAD_DIM
    ) -> None:
        super().__init__()
        self.xyz_norm = nn.LayerNorm(xyz_dim)
        self.xyz_mlp = Mlp(xyz_dim, hidden_ratio * xyz_dim)
        self.rgb_norm = nn.LayerNorm(rgb_dim)
        self.rgb_mlp = Mlp(rgb_dim, hidden_ratio * rgb_dim)
        self.rgb_head = nn.Linear(rgb_dim, head_dim)
        self.xyz_head = nn.Linear(xyz_dim, head_dim)

    def xyz_features(self, xyz: torch.Tensor) -> torch.Tensor:
        """xyz' = MLP(LayerNorm(xyz)), (..., xyz_dim) -> (..., xyz_dim)."""
        return self.xyz_mlp(self.xyz_norm(xyz))

    def rgb_features(self, rgb: torch.Tensor) -> torch.Tensor:
        """rgb' = MLP(LayerNorm(rgb)), (..., rgb_dim) -> (..., rgb_dim)."""
        return self.rgb_mlp(self.rgb_norm(rgb))

    def fuse(self, xyz: torch.Tensor, rgb: torch.Tensor) -> torch.Tensor:
        """Fused patches [xyz', rgb'], (..., xyz_dim) and (..., rgb_dim) -> (..., xyz_dim + rgb_dim)."""
        return torch.cat([self.xyz_features(xyz), self.rgb_features(rgb)], dim=-1)

    def keys(self, xyz: torch.Tensor) -> torch.Tensor:
        """Unit vectors that stand for xyz patches in the loss, (n, xyz_dim) -> (n, head_dim) float32."""
        return F.normalize(self.xyz_head(self.xyz_features(xyz)).float(), dim=-1)

    def queries(self, rgb: torch.Tensor) -> torch.Tensor:
        """Unit vectors that stand for rgb patches in the loss, (m, rgb_dim) -> (m, head_dim) float32."""
        return F.normalize(self.rgb_head(self.rgb_features(rgb)).float(), dim=-1)


def initial_fusion_block(xyz_dim: int, rgb_dim: int, seed: int) -> FusionBlock:
    """An untrained block on the CPU, ready to train; equal seeds give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FusionBlock(xyz_dim, rgb_dim)


def random_fusion_block(xyz_dim: int, rgb_dim: int, seed: int) -> FusionBlock:
    """An untrained block, frozen: for trying out a pipeline without a checkpoint, never for results."""
    return _frozen(initial_fusion_block(xyz_dim, rgb_dim, seed))


def load_fusion_block(path: str | Path, *, xyz_dim: int, rgb_dim: int) -> FusionBlock:
    """The trained block of `path`, a checkpoint of ours or of the release, frozen and in eval mode.

    The sizes between input and output follow the file. Raises CheckpointError when the file is missing, is
    no UFF checkpoint, lacks a key, or was trained for backbones of other feature sizes.
    """
    path = Path(path)
    state = read_uff_checkpoint(path, REMEDY)["model"]
    inputs = {"xyz_norm.weight": (xyz_dim,), "rgb_norm.weight": (rgb_dim,)}
    check_shapes(_shapes(state), inputs, path, BACKBONE_REMEDY)
    block = FusionBlock(xyz_dim, rgb_dim, *_inner_sizes(state, path, xyz_dim))
    load_complete(block, state, path, REMEDY)
    return _frozen(block)


def read_uff_checkpoint(path: Path, remedy: str) -> dict[str, Any]:
    """The dict model, optimizer, epoch, scaler, args of a checkpoint; keys of `model` without "module.".

    Raises CheckpointError when the file is missing or has no such layout.
    """
    checkpoint = read_torch_file(path, remedy)
    state = entry(checkpoint, "model", path, remedy, dict)
    return {**checkpoint, "model": subset(state, "")}


def _inner_sizes(state: Mapping[str, torch.Tensor], path: Path, xyz_dim: int) -> tuple[int, int]:
    """(hidden ratio, head dim) of a checkpoint."""
    shapes = _shapes(state)
    for key in ("xyz_mlp.fc1.weight", "rgb_head.weight"):
        if not shapes.get(key):
            raise CheckpointError(f"{path}: 1 keys are missing: {key}; {REMEDY}")
    hidden_ratio, head_dim = shapes["xyz_mlp.fc1.weight"][0] // xyz_dim, shapes["rgb_head.weight"][0]
    if not (1 <= hidden_ratio <= LARGEST_HIDDEN_RATIO and 1 <= head_dim <= LARGEST_HEAD_DIM):
        raise CheckpointError(f"{path}: claims hidden ratio {hidden_ratio} and head dim {head_dim}; {REMEDY}")
    return hidden_ratio, head_dim


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items() if is_plain_tensor(value)}


def _frozen(block: FusionBlock) -> FusionBlock:
    return block.eval().requires_grad_(False)
