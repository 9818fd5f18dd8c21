"""The release's training features: `<class><number>.pt`, a float32 tensor (3136, 1152 + rgb dim), xyz first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models.checkpoints import CheckpointError, is_plain_tensor, read_torch_file
from models.uff.feature_store import SAVE_AGAIN, StoredSample, StoreMeta
from models.uff.pairing import Pairing, paired_rgb

XYZ_DIM = 1152
XYZ_SIDE = 56
RGB_SIDE = 28
UNKNOWN = "unknown"


def released_meta(path: Path) -> StoreMeta:
    """What the folder of this file holds, as far as the file says."""
    return StoreMeta(
        dataset=UNKNOWN,
        rgb_backbone=UNKNOWN,
        xyz_backbone=UNKNOWN,
        rgb_dim=_load(path).shape[1] - XYZ_DIM,
        xyz_dim=XYZ_DIM,
        rgb_side=RGB_SIDE,
        xyz_side=XYZ_SIDE,
        feature_dtype="float32",
    )


def read_released_sample(path: Path, meta: StoreMeta) -> StoredSample:
    """One file, whether its rgb rows are scrambled or not; CheckpointError when it is no such file."""
    features = _load(path)
    xyz, rgb = features[:, :XYZ_DIM], features[:, XYZ_DIM:]
    if rgb.shape[1] != meta.rgb_dim:
        raise CheckpointError(
            f"{path}: has {rgb.shape[1]} rgb numbers a patch, the folder's first file {meta.rgb_dim}; features of "
            "different backbones are mixed, keep each in a folder of its own"
        )
    row = (xyz != 0).any(dim=1).nonzero().squeeze(1)
    return StoredSample(_distinct_rgb(path, rgb), xyz[row], row)


def _distinct_rgb(path: Path, rgb: torch.Tensor) -> torch.Tensor:
    """Each rgb patch once, (784, Dr), from rows in which each stands four times in one of the two pairings."""
    pairings: tuple[Pairing, Pairing] = ("colocated", "scrambled")
    for pairing in pairings:
        patch_of_row = paired_rgb(pairing, RGB_SIDE, XYZ_SIDE)
        _, first_row = np.unique(patch_of_row.numpy(), return_index=True)
        distinct = rgb[torch.from_numpy(first_row)]
        if torch.equal(distinct[patch_of_row], rgb):
            return distinct
    raise CheckpointError(
        f"{path}: its rgb rows are neither co-located nor scrambled as the release saves them"
    )


def _load(path: Path) -> torch.Tensor:
    features = read_torch_file(path, SAVE_AGAIN)
    if (
        not is_plain_tensor(features)
        or not features.is_floating_point()
        or features.ndim != 2
        or features.shape[0] != XYZ_SIDE**2
        or features.shape[1] <= XYZ_DIM
    ):
        found = getattr(features, "dtype", type(features).__name__), tuple(getattr(features, "shape", ()))
        raise CheckpointError(
            f"{path}: is no tensor of ({XYZ_SIDE**2}, {XYZ_DIM} + rgb dim) numbers, but {found}"
        )
    return features
