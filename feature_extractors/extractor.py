"""From a sample to patches: geometry on the CPU (in loader workers), then the frozen networks on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from feature_extractors.networks import Networks
from feature_extractors.settings import Settings
from models.alignment import align, alignment_operator, pool_points
from models.fpfh.descriptors import fpfh_features
from models.point_transformer.point_ops import group_points
from models.uff.block import FusionBlock
from models.uff.pairing import paired_rgb
from models.vit import vit_patches
from utils.structures import AlignmentOperator, Modality, Patches, PointGroups, Sample

MOST_BATCHES_AT_ONCE = 4  # on the CPU, each with some 0.3 GB of activations


@dataclass(frozen=True)
class PreparedSample:
    """A sample with what its cloud gives without a network.

    groups and operator for a point transformer, or descriptors, FPFH's patches; None where the method or the
    cloud has no points.
    """

    sample: Sample
    groups: PointGroups | None = None
    operator: AlignmentOperator | None = None
    descriptors: Patches | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """Groups and aligns a sample's points; a picklable callable for the loader's workers."""

    settings: Settings

    def __call__(self, sample: Sample) -> PreparedSample:
        settings = self.settings
        if not settings.method.uses_xyz:
            return PreparedSample(sample, remarks=sample.remarks)
        if len(sample.points) == 0:
            remark = "the cloud has no point: all xyz patches are empty"
            return PreparedSample(sample, remarks=(*sample.remarks, remark))
        if settings.xyz_backbone_name == "FPFH":
            return PreparedSample(sample, descriptors=self._descriptors(sample), remarks=sample.remarks)
        return self._grouped(sample)

    def _grouped(self, sample: Sample) -> PreparedSample:
        settings = self.settings
        groups = group_points(sample.points, settings.num_group, settings.group_size)
        operator = alignment_operator(
            sample.points,
            sample.pixel_index,
            groups.centers,
            image_size=settings.img_size,
            side=settings.xyz_side,
            interpolation=settings.quirks.interpolation,
        )
        remarks = (*sample.remarks, *self._few_points(len(sample.points)))
        return PreparedSample(sample, groups, operator, remarks=remarks)

    def _descriptors(self, sample: Sample) -> Patches:
        """FPFH's patches; float64 as in BTF where they stand alone, float32 beside others."""
        features = fpfh_features(sample.points, np.float64)
        size, side = self.settings.img_size, self.settings.xyz_side
        patches = pool_points(features, sample.pixel_index, image_size=size, side=side)
        if self.settings.method.banks == ("xyz",):
            return patches
        return Patches(patches.rows.float(), patches.index, side)

    def _few_points(self, count: int) -> tuple[str, ...]:
        needed = max(self.settings.num_group, self.settings.group_size)
        if count >= needed:
            return ()
        return (f"the cloud has {count} points, --num_group and --group_size want {needed}: fewer are used",)


class Extractor:
    """Turns prepared samples into patches of each modality that the method's banks hold or fuse.

    Deterministic but for `--quirk drop_path=live`, whose draws come from a generator seeded by `settings.seed`.
    """

    def __init__(self, settings: Settings, networks: Networks, device: torch.device) -> None:
        self.settings = settings
        self.device = device
        self.rgb, self.xyz, self.fusion = networks.rgb, networks.xyz, networks.fusion
        for network in (self.rgb, self.xyz, self.fusion):
            if network is not None:
                network.to(device)
        self.generator = torch.Generator(device).manual_seed(settings.seed)

    @property
    def batches_at_once(self) -> int:
        """How many calls of `extract` may share the cores; what is drawn for DropPath needs one after the other."""
        if self.device.type != "cpu" or self.settings.quirks.drop_path == "live":
            return 1
        return min(torch.get_num_threads(), MOST_BATCHES_AT_ONCE)

    @torch.inference_mode()
    def extract(self, batch: list[PreparedSample]) -> list[dict[Modality, Patches]]:
        """Patches of each sample: rgb and xyz as the backbones give them, and, where it is used, fusion."""
        by_modality: dict[Modality, list[Patches]] = {}
        if self.rgb is not None:
            by_modality["rgb"] = self._rgb_patches(self.rgb, batch)
        if self.settings.method.uses_xyz:
            by_modality["xyz"] = [self._xyz_patches(prepared) for prepared in batch]
        if self.fusion is not None:
            pairs = zip(by_modality["xyz"], by_modality["rgb"], strict=True)
            by_modality["fusion"] = [fuse_patches(self.fusion, xyz, rgb) for xyz, rgb in pairs]
        return [{name: patches[i] for name, patches in by_modality.items()} for i in range(len(batch))]

    def _rgb_patches(self, network: nn.Module, batch: list[PreparedSample]) -> list[Patches]:
        images = torch.from_numpy(np.stack([prepared.sample.image for prepared in batch])).to(self.device)
        with self._precision():
            features = vit_patches(network, images).float()  # (B, 3, S, S) -> (B, P, D)
        side = self.settings.rgb_side
        index = torch.arange(side * side, device=self.device)
        return [Patches(rows, index, side) for rows in features]

    def _xyz_patches(self, prepared: PreparedSample) -> Patches:
        if prepared.descriptors is not None:
            found = prepared.descriptors
            return Patches(found.rows.to(self.device), found.index.to(self.device), found.side)
        if prepared.groups is None or prepared.operator is None or self.xyz is None:
            return self._empty_patches()
        groups = torch.from_numpy(prepared.groups.groups).to(self.device)[None]
        centers = torch.from_numpy(prepared.groups.centers).to(self.device)[None]
        with self._precision():
            tokens = self.xyz(groups, centers, self.generator)[0].float()  # (1, G, M, 3) -> (G, 1152)
        return align(prepared.operator, tokens)

    def _empty_patches(self) -> Patches:
        side = self.settings.xyz_side
        rows = torch.zeros(1, self.settings.xyz_dim, device=self.device)
        return Patches(rows, torch.zeros(side * side, dtype=torch.int64, device=self.device), side)

    def _precision(self) -> torch.autocast:
        enabled = self.settings.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def fuse_patches(network: FusionBlock, xyz: Patches, rgb: Patches) -> Patches:
    """UFF at inference: each xyz patch beside the rgb patch above it, xyz first.

    The rgb grid is brought to the xyz grid by nearest upsampling. Each branch sees each distinct row once, and
    each distinct pair becomes one row.
    """
    rgb_index = rgb.index[paired_rgb("colocated", rgb.side, xyz.side).to(rgb.index.device)]
    pairs, index = torch.unique(
        xyz.index * len(rgb.rows) + rgb_index, return_inverse=True
    )  # (P,) -> (U,), (P,)
    xyz_rows = network.xyz_features(xyz.rows)[pairs // len(rgb.rows)]
    rgb_rows = network.rgb_features(rgb.rows)[pairs % len(rgb.rows)]
    return Patches(torch.cat([xyz_rows, rgb_rows], dim=1), index, xyz.side)
