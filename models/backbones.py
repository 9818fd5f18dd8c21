"""The two tables of backbones: `--rgb_backbone_name` and `--xyz_backbone_name`, as plain data without torch.

A row says what the rest needs to know of a backbone, and names the function that builds it, in a module that is
imported only then (docs/extending.md adds one).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from models.downloads import Download, drive_page, drive_url
from utils.fetching import Facts
from utils.structures import Patches, Sample

if TYPE_CHECKING:
    import torch

PointOps = Literal[
    "cpu", "cuda"
]  # who makes the groups of points: point_ops.py, or pointnet2_ops and knn_cuda

AUGREG = "B_8-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
AUGREG_1K = f"{AUGREG}--imagenet2012-steps_20k-lr_0.01-res_224.npz"
AUGREG_URL = "https://storage.googleapis.com/vit_models/augreg"
DINO_URL = "https://dl.fbaipublicfiles.com/dino"
DINO_B8_ID = "17s6lwfxwG_nf1td6LXunL-LjRaX67iyK"  # the release's own copies are on a drive
POINT_MAE_ID = "1-wlRIz0GM8o6BuPTJz4kTt6c_z1Gh6LX"


@dataclass(frozen=True)
class RgbBackbone:
    """One image backbone.

    builder: "module:function"; the function takes this row, the image side S and a checkpoint's path (None: random
    weights, drawn from torch's default generator) and returns a frozen module that turns images (B, 3, S, S),
    normalised as for ImageNet, into patches (B, P, dim), row-major, P = (S / stride)^2. variant: what the builder
    calls this row. prefix_tokens: tokens ahead of the patches', which the module leaves out. download: the file of
    its weights; None where it has none.
    """

    builder: str
    dim: int
    stride: int = 8
    prefix_tokens: int = 0
    variant: str = ""
    download: Download | None = None

    @property
    def summary(self) -> str:
        """For --help."""
        return self.download.title if self.download else f"{self.dim} dims, {self.stride} pixels a patch"

    def build(self, image_size: int, checkpoint: Path | None) -> Any:
        """The network. Raises CheckpointError when the file is not what it should be."""
        return find_builder(self.builder)(self, image_size, checkpoint)


@dataclass(frozen=True)
class XyzOptions:
    """What the way from a cloud to patches depends on; see Settings and Quirks, and M3DM for point_ops."""

    image_size: int
    num_group: int
    group_size: int
    batchnorm: Literal["cloud", "running"]
    drop_path: bool
    interpolation: Literal["cancelling", "exact"]
    point_ops: PointOps = "cpu"


@dataclass(frozen=True)
class XyzBackbone:
    """One backbone for clouds.

    builder: "module:function"; the function takes this row, XyzOptions and a checkpoint's path (None: random weights
    where it has any) and returns a CloudEncoder. dim: of its patches. stride: image pixels a side of a patch.
    variant and download as in RgbBackbone. grouped: it works on groups of points, so XyzOptions.point_ops matters.
    """

    builder: str
    dim: int
    stride: int
    variant: str = ""
    download: Download | None = None
    grouped: bool = False

    def build(self, options: XyzOptions, checkpoint: Path | None) -> CloudEncoder:
        """The encoder. Raises CheckpointError when the file is not what it should be."""
        encoder: CloudEncoder = find_builder(self.builder)(self, options, checkpoint)
        return encoder


@dataclass(frozen=True)
class PreparedCloud:
    """What a cloud gives by geometry alone, in whatever form its encoder takes; remarks: what was odd about it."""

    geometry: Any
    remarks: tuple[str, ...] = ()


class CloudEncoder(Protocol):
    """The way from a cloud to patches: `prepare` on the CPU, in the loader's workers, then `patches` on the device.

    `prepare` is a picklable callable without the network, for samples that have points. It raises ValueError for a
    cloud that can't be used.
    """

    @property
    def prepare(self) -> Callable[[Sample], PreparedCloud]: ...

    def to(self, device: torch.device) -> CloudEncoder: ...

    def patches(self, geometry: Any, generator: torch.Generator) -> Patches:
        """Patches of one cloud; `generator` draws what is random about them, if anything is."""
        ...


def find_builder(name: str) -> Callable[..., Any]:
    """The function that a row's `builder` names as "module:function"."""
    module, function = name.split(":")
    builder: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return builder


VIT = "models.vit:build_vit"
POINT_TRANSFORMER = "models.point_transformer.encoder:build_encoder"

RGB_BACKBONES = {
    "vit_base_patch8_224_dino": RgbBackbone(
        VIT,
        768,
        prefix_tokens=1,
        variant="vit_base_patch8_224.dino",
        download=Download(
            "dino_vitbase8_pretrain.pth",
            "ViT-B/8 DINO",
            "vit_base_patch8_224_dino",
            urls=(f"{DINO_URL}/dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth", drive_url(DINO_B8_ID)),
            facts=Facts(md5="556550"),
            page=drive_page(DINO_B8_ID),
        ),
    ),
    # timm's bare vit_base_patch8_224 has since come to mean other weights than those the release used
    "vit_base_patch8_224": RgbBackbone(
        VIT,
        768,
        prefix_tokens=1,
        variant="vit_base_patch8_224.augreg_in21k_ft_in1k",
        download=Download(
            AUGREG_1K,
            "ViT-B/8 supervised, ImageNet 1k",
            "vit_base_patch8_224",
            urls=(f"{AUGREG_URL}/{AUGREG_1K}",),
        ),
    ),
    "vit_base_patch8_224_in21k": RgbBackbone(
        VIT,
        768,
        prefix_tokens=1,
        variant="vit_base_patch8_224.augreg_in21k",
        download=Download(
            f"{AUGREG}.npz",
            "ViT-B/8 supervised, ImageNet 21k",
            "vit_base_patch8_224_in21k",
            urls=(f"{AUGREG_URL}/{AUGREG}.npz",),
        ),
    ),
    "vit_small_patch8_224_dino": RgbBackbone(
        VIT,
        384,
        prefix_tokens=1,
        variant="vit_small_patch8_224.dino",
        download=Download(
            "dino_deitsmall8_pretrain.pth",
            "ViT-S/8 DINO",
            "vit_small_patch8_224_dino",
            urls=(f"{DINO_URL}/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth",),
            facts=Facts(86_728_949, "55c8b267f479b614ec20858947ce361ba804846c193e20be74263a096bb6d75e"),
        ),
    ),
}

XYZ_BACKBONES = {
    "Point_MAE": XyzBackbone(
        POINT_TRANSFORMER,
        1152,
        stride=4,
        download=Download(
            "pointmae_pretrain.pth",
            "Point-MAE",
            "Point_MAE",
            urls=(
                "https://github.com/Pang-Yatian/Point-MAE/releases/download/main/pretrain.pth",
                drive_url(POINT_MAE_ID),
            ),
            facts=Facts(348_288_755, "27ded932bb0a2625d5a8eb006df199b2578598c774aee6d86b985300b6a5fd20"),
            page=drive_page(POINT_MAE_ID),
        ),
        variant="Point_MAE",
        grouped=True,
    ),
    "Point_Bert": XyzBackbone(
        POINT_TRANSFORMER,
        1152,
        stride=4,
        download=Download(
            "Point-BERT.pth",
            "Point-BERT",
            "Point_Bert",
            urls=("https://cloud.tsinghua.edu.cn/f/202b29805eea45d7be92/?dl=1",),
            page="https://cloud.tsinghua.edu.cn/f/202b29805eea45d7be92/",
        ),
        variant="Point_Bert",
        grouped=True,
    ),
    "FPFH": XyzBackbone("models.fpfh.encoder:build_encoder", 33, stride=8),
}
