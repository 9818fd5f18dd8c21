"""The plain twins of UFF's loss and of its training step."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from models.uff.block import FusionBlock
from models.uff.pairs import PatchPairs


def plain_contrastive_loss(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """All N x N logits at once; row i of `queries` belongs to row i of `keys`."""
    logits = queries @ keys.T
    return 2 * F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def plain_uff_loss(block: FusionBlock, xyz: torch.Tensor, rgb: torch.Tensor) -> torch.Tensor:
    """Every patch (P, D) goes through the block; those with a zero in their xyz values are then left out."""
    keys = F.normalize(block.xyz_head(block.xyz_features(xyz)), dim=-1)
    queries = F.normalize(block.rgb_head(block.rgb_features(rgb)), dim=-1)
    counts = (xyz != 0).all(dim=1)
    return plain_contrastive_loss(queries[counts], keys[counts])


def plain_batch_loss(block: FusionBlock, pairs: PatchPairs) -> torch.Tensor:
    """The loss of pairs, each rgb patch repeated for each of its xyz patches."""
    return plain_uff_loss(block, pairs.xyz.float(), pairs.rgb.float()[pairs.rgb_row])
