"""Small features on disk in which rgb and xyz patches of one place have something in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from models.uff.feature_store import FeatureStoreWriter, StoreMeta
from models.uff.pairing import paired_rgb
from utils.structures import Modality, Patches

META = StoreMeta(
    dataset="toys",
    rgb_backbone="toy_vit",
    xyz_backbone="toy_points",
    rgb_dim=16,
    xyz_dim=32,
    rgb_side=4,
    xyz_side=8,
)
HIDDEN_DIM = 6  # of what both modalities show
NOISE = 0.1


def toy_patches(seed: int, meta: StoreMeta = META, empty_share: float = 0.3) -> dict[Modality, Patches]:
    """One sample: linear views of one hidden vector a place; the xyz rows of the empty places are zero."""
    views = torch.Generator().manual_seed(0)
    rgb_view = torch.randn(HIDDEN_DIM, meta.rgb_dim, generator=views)
    xyz_view = torch.randn(HIDDEN_DIM, meta.xyz_dim, generator=views)
    rng = torch.Generator().manual_seed(seed + 1)
    hidden = torch.randn(meta.rgb_side**2, HIDDEN_DIM, generator=rng)
    rgb = hidden @ rgb_view
    xyz = hidden[paired_rgb("colocated", meta.rgb_side, meta.xyz_side)] @ xyz_view
    xyz += NOISE * torch.randn(xyz.shape, generator=rng)
    empty = torch.rand(len(xyz), generator=rng) < empty_share
    rows = torch.cat([torch.zeros(1, meta.xyz_dim), xyz[~empty]])
    index = torch.where(empty, 0, (~empty).cumsum(0))
    return {
        "rgb": Patches(rgb, torch.arange(len(rgb)), meta.rgb_side),
        "xyz": Patches(rows, index, meta.xyz_side),
    }


def write_toy_store(folder: Path, count: int, class_name: str = "bagel", **changes: object) -> Path:
    """A folder of `count` samples; `changes` replace fields of META."""
    meta = replace(META, **changes)  # type: ignore[arg-type]
    with FeatureStoreWriter.open(folder, meta) as store:
        for i in range(count):
            store.save(class_name, i, toy_patches(i, meta))
        store.complete_class(class_name, count)
    return folder
