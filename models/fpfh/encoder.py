"""From a cloud to patches by FPFH: BTF's features need no network, so all the work is in the preparation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from models.alignment import pool_points
from models.backbones import PreparedCloud, XyzBackbone, XyzOptions
from models.fpfh.descriptors import fpfh_features
from utils.structures import Patches, Sample


@dataclass(frozen=True)
class Description:
    """FPFH of a sample's points, pooled to the grid; a picklable callable for the loader's workers."""

    image_size: int
    side: int

    def __call__(self, sample: Sample) -> PreparedCloud:
        """Patches (P, 33), float64 as in BTF."""
        features = fpfh_features(sample.points)
        size, side = self.image_size, self.side
        return PreparedCloud(pool_points(features, sample.pixel_index, image_size=size, side=side))


@dataclass(frozen=True)
class FpfhEncoder:
    """A CloudEncoder whose patches are ready when the cloud is prepared."""

    prepare: Description
    device: torch.device

    def to(self, device: torch.device) -> FpfhEncoder:
        return FpfhEncoder(self.prepare, device)

    def patches(self, geometry: Patches, generator: torch.Generator) -> Patches:
        return Patches(geometry.rows.to(self.device), geometry.row_of_patch.to(self.device), geometry.side)


def build_encoder(row: XyzBackbone, options: XyzOptions, checkpoint: Path | None) -> FpfhEncoder:
    """The encoder; there are no weights."""
    prepare = Description(options.image_size, options.image_size // row.stride)
    return FpfhEncoder(prepare, torch.device("cpu"))
