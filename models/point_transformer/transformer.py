"""The point transformers of Point-MAE and Point-BERT as M3DM uses them: point groups -> multi-level tokens.

Alphabet: B clouds, G groups, M points a group, T tokens (G, and the class token where there is one), D = 384.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.point_transformer.group_encoder import BatchNormStatistics, GroupEncoder

EMBED_DIM = 384
POSITION_DIM = 128
DEPTH = 12
NUM_HEADS = 6
MLP_RATIO = 4
OUTPUT_BLOCKS = (4, 8, 12)  # counted from 1; M3DM section 3.1 concatenates their outputs
TOKEN_DIM = EMBED_DIM * len(OUTPUT_BLOCKS)


class PointTransformer(nn.Module):
    """Group encoder, position embedding of the centres, 12 pre-norm blocks.

    Parameter names are those of the published checkpoints. `batchnorm`: see GroupEncoder. `drop_path` > 0 is
    the drop rate of the last block, live at every forward as in the released code.
    """

    def __init__(
        self,
        *,
        encoder_dim: int,
        class_token: bool,
        batchnorm: BatchNormStatistics = "cloud",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = GroupEncoder(encoder_dim, batchnorm=batchnorm)
        self.reduce_dim = nn.Identity() if encoder_dim == EMBED_DIM else nn.Linear(encoder_dim, EMBED_DIM)
        if class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, EMBED_DIM))
            self.cls_pos = nn.Parameter(torch.zeros(1, 1, EMBED_DIM))
        self.class_token = class_token
        self.pos_embed = nn.Sequential(
            nn.Linear(3, POSITION_DIM), nn.GELU(), nn.Linear(POSITION_DIM, EMBED_DIM)
        )
        self.blocks = BlockStack(drop_path)
        self.norm = nn.LayerNorm(EMBED_DIM)

    def forward(self, groups: Tensor, centers: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Tokens (B, G, 1152): blocks 4, 8 and 12, each through the final norm, side by side.

        groups (B, G, M, 3) relative to their centres and centers (B, G, 3), in metres. `generator` draws what
        DropPath drops; ValueError if drop_path > 0 and there is none.
        """
        tokens = self.reduce_dim(self.encoder(groups))
        position = self.pos_embed(centers.to(tokens.dtype))
        if self.class_token:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
            position = torch.cat([self.cls_pos.expand(len(tokens), -1, -1), position], dim=1)
        levels = self.blocks(tokens, position, generator)
        return torch.cat([self.norm(level[:, int(self.class_token) :]) for level in levels], dim=2)


class BlockStack(nn.Module):
    """The 12 blocks; each sees the position again, and blocks 4, 8 and 12 are kept."""

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        rates = torch.linspace(0, drop_path, DEPTH).tolist()
        self.blocks = nn.ModuleList(Block(rate) for rate in rates)

    def forward(self, tokens: Tensor, position: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """(B, T, D) each -> the kept blocks' outputs, (B, T, D) each."""
        levels = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens + position, generator)
            if number in OUTPUT_BLOCKS:
                levels.append(tokens)
        return levels


class Block(nn.Module):
    """Pre-norm attention and MLP, each on a residual branch that DropPath may drop."""

    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(EMBED_DIM)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(EMBED_DIM)
        self.mlp = Mlp()

    def forward(self, tokens: Tensor, generator: torch.Generator | None) -> Tensor:
        tokens = tokens + drop_path(self.attn(self.norm1(tokens)), self.drop_rate, generator)
        return tokens + drop_path(self.mlp(self.norm2(tokens)), self.drop_rate, generator)


class Attention(nn.Module):
    """Multi-head self-attention, 6 heads, queries, keys and values without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(EMBED_DIM, 3 * EMBED_DIM, bias=False)
        self.proj = nn.Linear(EMBED_DIM, EMBED_DIM)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(tokens).unflatten(-1, (3, NUM_HEADS, -1))  # (B, T, 3, heads, D / heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """384 -> 1536, GELU -> 384."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(EMBED_DIM, MLP_RATIO * EMBED_DIM)
        self.fc2 = nn.Linear(MLP_RATIO * EMBED_DIM, EMBED_DIM)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


def drop_path(branch: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Stochastic depth: drop the branch of each cloud with probability `rate`, else divide it by 1 - rate.

    branch (B, T, D). The draws come from `generator`, on its own device; ValueError if rate > 0 without one.
    """
    if rate == 0:
        return branch
    if generator is None:
        raise ValueError(f"DropPath is live (rate {rate:g}) but no generator was passed to draw from")
    keep = 1 - rate
    drawn = torch.rand(len(branch), 1, 1, generator=generator, device=generator.device) < keep
    return branch * drawn.to(branch) / keep
