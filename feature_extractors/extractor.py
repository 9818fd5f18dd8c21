"""From a sample to patches: geometry on the CPU (in loader workers), then the frozen networks on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from feature_extractors.feature_cache import Kept
from feature_extractors.networks import Networks
from feature_extractors.settings import Settings
from models.backbones import PreparedCloud
from models.uff.block import FusionBlock
from models.uff.pairing import paired_rgb
from utils.structures import Modality, Patches, Sample

NOTHING_KEPT = Kept()
MOST_BATCHES_AT_ONCE = 4  # on the CPU, each with some 0.3 GB of activations


@dataclass(frozen=True)
class PreparedSample:
    """A sample with what its cloud gives without a network; geometry is None where no cloud is looked at.

    on_sample, on_cloud: what is odd about its files, and about what the xyz backbone makes of its cloud. kept: patches
    that are known already.
    """

    image: np.ndarray
    geometry: Any
    on_sample: tuple[str, ...] = ()
    on_cloud: tuple[str, ...] = ()
    kept: Kept = NOTHING_KEPT

    @property
    def remarks(self) -> tuple[str, ...]:
        """All that is odd, each once."""
        return tuple(dict.fromkeys(self.on_sample + self.on_cloud + self.kept.remarks))

    def remarks_of(self, modality: Modality) -> tuple[str, ...]:
        """What goes with the patches of one backbone."""
        return self.on_sample + (self.on_cloud if modality == "xyz" else ())


@dataclass(frozen=True)
class Preparation:
    """Prepares a sample's cloud as the xyz backbone wants it, unless its patches are known; picklable, for workers.

    Raises ValueError for a cloud without a point: it would look like the most normal of all.
    """

    prepare_cloud: Callable[[Sample], PreparedCloud] | None

    def __call__(self, sample: Sample, kept: Kept = NOTHING_KEPT) -> PreparedSample:
        if self.prepare_cloud is None or "xyz" in kept.patches:
            return PreparedSample(sample.image, None, sample.remarks, kept=kept)
        if len(sample.points) == 0:
            raise ValueError("the cloud has no point")
        cloud = self.prepare_cloud(sample)
        return PreparedSample(sample.image, cloud.geometry, sample.remarks, cloud.remarks, kept)


class Extractor:
    """Turns prepared samples into patches of each modality that the method's banks hold or fuse.

    Deterministic but for `--quirk drop_path=live`, whose draws come from a generator that `restart` seeds.
    """

    def __init__(self, settings: Settings, networks: Networks, device: torch.device) -> None:
        self.settings = settings
        self.networks = networks
        self.device = device
        self._generator = torch.Generator(device)
        self.restart()

    def restart(self) -> None:
        """Draw from the beginning again, so that no class depends on those before it."""
        self._generator.manual_seed(self.settings.seed)

    @property
    def preparation(self) -> Preparation:
        """What comes before `extract`."""
        encoder = self.networks.xyz
        return Preparation(encoder.prepare if encoder else None)

    @property
    def batches_at_once(self) -> int:
        """How many calls of `extract` may share the cores; what is drawn for DropPath needs one after the other."""
        if self.device.type != "cpu" or self.settings.quirks.draws_features:
            return 1
        return min(torch.get_num_threads(), MOST_BATCHES_AT_ONCE)

    def extract(self, batch: list[PreparedSample]) -> list[dict[Modality, Patches]]:
        """Patches of each sample: rgb and xyz as the backbones give them, and, where it is used, fusion."""
        return [self.fused(patches) for patches in self.backbone_patches(batch)]

    @torch.inference_mode()
    def backbone_patches(self, batch: list[PreparedSample]) -> list[dict[Modality, Patches]]:
        """Patches of each sample as the backbones give them."""
        found: list[dict[Modality, Patches]] = [dict(sample.kept.patches) for sample in batch]
        rgb, xyz = self.networks.rgb, self.networks.xyz
        if rgb is not None:
            new = [i for i, known in enumerate(found) if "rgb" not in known]
            for i, patches in zip(new, self._rgb_patches(rgb, [batch[i] for i in new]), strict=True):
                found[i]["rgb"] = patches
        if xyz is not None:
            with self._precision():
                for sample, known in zip(batch, found, strict=True):
                    if "xyz" not in known:
                        known["xyz"] = xyz.patches(sample.geometry, self._generator)
        return found

    @torch.inference_mode()
    def fused(self, patches: Mapping[Modality, Patches]) -> dict[Modality, Patches]:
        """The backbones' patches of a sample, on the device, and where it is used those that UFF makes of them."""
        there: dict[Modality, Patches] = {name: found.to(self.device) for name, found in patches.items()}
        if self.networks.fusion is not None:
            there["fusion"] = fuse_patches(self.networks.fusion, there["xyz"], there["rgb"])
        return there

    def _rgb_patches(self, network: nn.Module, batch: list[PreparedSample]) -> list[Patches]:
        if not batch:
            return []
        images = torch.from_numpy(np.stack([sample.image for sample in batch])).to(self.device)
        with self._precision():
            features = network(images).float()  # (B, 3, S, S) -> (B, P, D)
        side = self.settings.rgb_side
        every_row = torch.arange(side * side, device=self.device)
        return [Patches(rows, every_row, side) for rows in features]

    def _precision(self) -> torch.autocast:
        enabled = self.settings.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def fuse_patches(network: FusionBlock, xyz: Patches, rgb: Patches) -> Patches:
    """UFF at inference: each xyz patch beside the rgb patch above it, xyz first.

    The rgb grid is brought to the xyz grid by nearest upsampling. Each branch sees each distinct row once, and
    each distinct pair becomes one row.
    """
    above = paired_rgb("colocated", rgb.side, xyz.side).to(rgb.row_of_patch.device)
    pairs, row_of_patch = torch.unique(
        xyz.row_of_patch * len(rgb.rows) + rgb.row_of_patch[above], return_inverse=True
    )  # (P,) -> (U,), (P,)
    xyz_rows = network.xyz_features(xyz.rows.float())[pairs // len(rgb.rows)]
    rgb_rows = network.rgb_features(rgb.rows)[pairs % len(rgb.rows)]
    return Patches(torch.cat([xyz_rows, rgb_rows], dim=1), row_of_patch, xyz.side)
