"""The image backbones: four ViTs with patches of 8 pixels, from the original downloads or through timm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.checkpoints import (
    CheckpointError,
    Download,
    check_shapes,
    decoded,
    load_complete,
    read_numpy_shapes,
    read_torch_file,
)

PATCH = 8  # pixels a side
TRAINED_SIDE = 224  # pixels; the position embeddings of all four files are for this size
AUGREG = "B_8-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"


@dataclass(frozen=True)
class VitSpec:
    """One `--rgb_backbone_name`: its name in timm, its dims, its original download."""

    timm_name: str
    dim: int
    download: Download


VITS = {
    "vit_base_patch8_224_dino": VitSpec(
        "vit_base_patch8_224.dino", 768, Download("dino_vitbase8_pretrain.pth", "ViT-B/8 DINO")
    ),
    "vit_small_patch8_224_dino": VitSpec(
        "vit_small_patch8_224.dino", 384, Download("dino_deitsmall8_pretrain.pth", "ViT-S/8 DINO")
    ),
    # timm's bare vit_base_patch8_224 has since come to mean other weights than those the release used
    "vit_base_patch8_224": VitSpec(
        "vit_base_patch8_224.augreg_in21k_ft_in1k",
        768,
        Download(f"{AUGREG}--imagenet2012-steps_20k-lr_0.01-res_224.npz", "ViT-B/8 supervised, ImageNet 1k"),
    ),
    "vit_base_patch8_224_in21k": VitSpec(
        "vit_base_patch8_224.augreg_in21k",
        768,
        Download(f"{AUGREG}.npz", "ViT-B/8 supervised, ImageNet 21k"),
    ),
}


def load_vit(name: str, checkpoint_dir: Path, image_size: int) -> nn.Module:
    """The frozen ViT `name` from its original download, or else through timm.

    Raises CheckpointError when the file is damaged or incomplete, or is not there and can't be fetched.
    """
    spec = VITS[name]
    path = spec.download.path_in(checkpoint_dir)
    if not path.is_file():
        return _fetch(spec, path, image_size)
    model = _create(spec, image_size)
    if path.suffix == ".npz":
        _load_jax_archive(model, path, spec.download.remedy())
    else:
        _load_state_dict(model, path, spec.download.remedy())
    return _frozen(model)


def random_vit(name: str, image_size: int) -> nn.Module:
    """The frozen ViT `name` with random weights, drawn from torch's default generator."""
    return _frozen(_create(VITS[name], image_size))


def vit_patches(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Patch tokens after the final norm, the class token left out: (B, 3, S, S) -> (B, (S/8)^2, D)."""
    return model.forward_features(images)[:, 1:]


def _create(spec: VitSpec, image_size: int, **options: Any) -> nn.Module:
    import timm  # slow to import

    return timm.create_model(spec.timm_name, num_classes=0, img_size=image_size, **options)


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _fetch(spec: VitSpec, path: Path, image_size: int) -> nn.Module:
    print(f"{path} is not there: fetching {spec.timm_name} through timm")
    try:
        return _frozen(_create(spec, image_size, pretrained=True))
    except Exception as error:  # whatever the hub's client and the network raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: no such file, and timm could not fetch {spec.timm_name} ({reason}); "
            f"{spec.download.remedy()}, or try the pipeline without knowledge with --random_weights"
        ) from error


def _load_state_dict(model: nn.Module, path: Path, remedy: str) -> None:
    state = read_torch_file(path, remedy)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, expected a state dict; {remedy}")
    with decoded(path, "torch file", remedy):
        fitting = _with_position_embedding_of(model, state)
    load_complete(model, fitting, path, remedy)


def _with_position_embedding_of(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The state with its position embedding interpolated to the model's grid, where that is another."""
    from timm.layers import resample_abs_pos_embed

    trained, wanted = state.get("pos_embed"), model.pos_embed.shape
    tokens = 1 + (TRAINED_SIDE // PATCH) ** 2
    if not isinstance(trained, torch.Tensor) or trained.shape[1:2] != (tokens,) or trained.shape == wanted:
        return state
    grid = list(model.patch_embed.grid_size)
    return {**state, "pos_embed": resample_abs_pos_embed(trained, new_size=grid, num_prefix_tokens=1)}


def _load_jax_archive(model: nn.Module, path: Path, remedy: str) -> None:
    check_shapes(read_numpy_shapes(path, remedy), _jax_layout(model), path, remedy)
    with decoded(path, ".npz file", remedy):
        model.load_pretrained(str(path))


def _jax_layout(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the encoder's arrays in an augreg .npz file."""
    dim, heads = model.embed_dim, model.blocks[0].attn.num_heads
    hidden, head_dim = model.blocks[0].mlp.fc1.out_features, dim // heads
    layout: dict[str, tuple[int, ...]] = {
        "cls": (1, 1, dim),
        "embedding/kernel": (PATCH, PATCH, 3, dim),
        "embedding/bias": (dim,),
        "Transformer/posembed_input/pos_embedding": (1, 1 + (TRAINED_SIDE // PATCH) ** 2, dim),
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
    for i in range(len(model.blocks)):
        layout |= {f"Transformer/encoderblock_{i}/{key}": shape for key, shape in block.items()}
    return layout
