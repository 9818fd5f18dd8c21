"""The image backbones of M3DM: four ViTs with patches of 8 pixels, from their original downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.backbones import RgbBackbone
from models.checkpoints import (
    CheckpointError,
    check_shapes,
    decoded,
    load_complete,
    read_numpy_shapes,
    read_torch_file,
)

TRAINED_SIDE = 224  # pixels; the position embeddings of all four files are for this size


class VitPatches(nn.Module):
    """A ViT's patch tokens after the final norm, the prefix tokens left out: (B, 3, S, S) -> (B, P, D)."""

    def __init__(self, vit: nn.Module, prefix_tokens: int) -> None:
        super().__init__()
        self.vit = vit
        self.prefix_tokens = prefix_tokens

    def forward(self, images: Tensor) -> Tensor:
        return self.vit.forward_features(images)[:, self.prefix_tokens :]


def build_vit(row: RgbBackbone, image_size: int, checkpoint: Path | None) -> VitPatches:
    """The frozen ViT of timm's name `row.variant`; with random weights where there is no checkpoint.

    Raises CheckpointError when the file is missing, damaged or incomplete.
    """
    import timm  # slow to import

    vit = timm.create_model(row.variant, num_classes=0, img_size=image_size)
    if checkpoint is not None and row.download is not None:
        load = _load_jax_archive if checkpoint.suffix == ".npz" else _load_state_dict
        load(vit, row, checkpoint, row.download.remedy(checkpoint.parent))
    return VitPatches(vit, row.prefix_tokens).eval().requires_grad_(False)


def _load_state_dict(vit: nn.Module, row: RgbBackbone, path: Path, remedy: str) -> None:
    state = read_torch_file(path, remedy)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, expected a state dict; {remedy}")
    with decoded(path, "torch file", remedy):
        fitting = _with_position_embedding_of(vit, row, state)
    load_complete(vit, fitting, path, remedy)


def _with_position_embedding_of(vit: nn.Module, row: RgbBackbone, state: dict[str, Any]) -> dict[str, Any]:
    """The state with its position embedding interpolated to the model's grid, where that is another."""
    from timm.layers import resample_abs_pos_embed

    trained, tokens = state.get("pos_embed"), _trained_tokens(row)
    if (
        not isinstance(trained, Tensor)
        or trained.shape[1:2] != (tokens,)
        or trained.shape == vit.pos_embed.shape
    ):
        return state
    grid = list(vit.patch_embed.grid_size)
    resampled = resample_abs_pos_embed(trained, new_size=grid, num_prefix_tokens=row.prefix_tokens)
    return {**state, "pos_embed": resampled}


def _load_jax_archive(vit: nn.Module, row: RgbBackbone, path: Path, remedy: str) -> None:
    check_shapes(read_numpy_shapes(path, remedy), _jax_layout(vit, row), path, remedy)
    with decoded(path, ".npz file", remedy):
        vit.load_pretrained(str(path))


def _trained_tokens(row: RgbBackbone) -> int:
    return row.prefix_tokens + (TRAINED_SIDE // row.stride) ** 2


def _jax_layout(vit: Any, row: RgbBackbone) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the encoder's arrays in an augreg .npz file."""
    dim, heads = row.dim, vit.blocks[0].attn.num_heads
    hidden, head_dim = vit.blocks[0].mlp.fc1.out_features, dim // heads
    layout: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, dim),
        "embedding/kernel": (row.stride, row.stride, 3, dim),
        "embedding/bias": (dim,),
        "Transformer/posembed_input/pos_embedding": (1, _trained_tokens(row), dim),
        "Transformer/encoder_norm/scale": (dim,),
        "Transformer/encoder_norm/bias": (dim,),
    }
    block: dict[str, tuple[int, ...]] = {
        "MlpBlock_3/Dense_0/kernel": (dim, hidden),
        "MlpBlock_3/Dense_0/bias": (hidden,),
        "MlpBlock_3/Dense_1/kernel": (hidden, dim),
        "MlpBlock_3/Dense_1/bias": (dim,),
        "MultiHeadDotProductAttention_1/out/kernel": (heads, head_dim, dim),
        "MultiHeadDotProductAttention_1/out/bias": (dim,),
    }
    for norm in ("LayerNorm_0", "LayerNorm_2"):
        block |= {f"{norm}/scale": (dim,), f"{norm}/bias": (dim,)}
    for part in ("query", "key", "value"):
        block[f"MultiHeadDotProductAttention_1/{part}/kernel"] = (dim, heads, head_dim)
        block[f"MultiHeadDotProductAttention_1/{part}/bias"] = (heads, head_dim)
    for i in range(len(vit.blocks)):
        layout |= {f"Transformer/encoderblock_{i}/{key}": shape for key, shape in block.items()}
    return layout
