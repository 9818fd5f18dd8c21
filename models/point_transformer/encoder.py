"""From a cloud to patches by a point transformer: groups and PFA on the CPU, tokens on the device.

The two networks that M3DM knows, Point-MAE's and Point-BERT's encoders, with the weights of their original downloads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from models.alignment import align, alignment_operator
from models.backbones import PreparedCloud, XyzBackbone, XyzOptions
from models.checkpoints import entry, load_complete, read_torch_file, subset
from models.downloads import Download
from models.point_transformer.group_encoder import BatchNormStatistics
from models.point_transformer.point_ops import group_points
from models.point_transformer.transformer import PointTransformer
from utils.structures import AlignmentOperator, Patches, PointGroups, Sample

RELEASED_DROP_PATH = 0.1  # drop rate of the last block, linear from 0 in the first


@dataclass(frozen=True)
class PointTransformerSpec:
    """One network as data.

    encoder_dim: width of the group encoder; where it is not 384 a linear layer brings it there. class_token: a
    learnt token with a position of its own goes ahead of the groups' and is left out of the result. prefix: of
    the encoder's keys in the download; ignored: keys under it that are not the encoder's.
    """

    encoder_dim: int
    class_token: bool
    prefix: str
    ignored: tuple[str, ...] = ()


POINT_TRANSFORMERS = {
    "Point_MAE": PointTransformerSpec(encoder_dim=384, class_token=False, prefix="MAE_encoder."),
    "Point_Bert": PointTransformerSpec(
        encoder_dim=256, class_token=True, prefix="transformer_q.", ignored=("cls_head",)
    ),
}


@dataclass(frozen=True)
class GroupedCloud:
    """What a cloud gives without the network: its groups, and the way from their tokens to patches."""

    groups: PointGroups
    operator: AlignmentOperator


@dataclass(frozen=True)
class Grouping:
    """Groups and aligns a sample's points; a picklable callable for the loader's workers."""

    options: XyzOptions
    side: int

    def __call__(self, sample: Sample) -> PreparedCloud:
        options = self.options
        groups = group_points(sample.points, options.num_group, options.group_size)
        operator = alignment_operator(
            sample.points,
            sample.pixel_index,
            groups.centers,
            image_size=options.image_size,
            side=self.side,
            interpolation=options.interpolation,
        )
        return PreparedCloud(GroupedCloud(groups, operator), self._remarks(len(sample.points)))

    def _remarks(self, count: int) -> tuple[str, ...]:
        wanted = max(self.options.num_group, self.options.group_size)
        if count >= wanted:
            return ()
        return (f"the cloud has {count} points, --num_group and --group_size want {wanted}: fewer are used",)


@dataclass(frozen=True)
class PointTransformerEncoder:
    """A frozen point transformer with its way from clouds to patches; a CloudEncoder."""

    network: PointTransformer
    prepare: Grouping

    def to(self, device: torch.device) -> PointTransformerEncoder:
        return PointTransformerEncoder(self.network.to(device), self.prepare)

    def patches(self, geometry: GroupedCloud, generator: torch.Generator) -> Patches:
        """(G, M, 3) groups -> (G, 1152) tokens -> (P, 1152) patches, float32."""
        device = self.network.norm.weight.device
        groups = torch.from_numpy(geometry.groups.groups).to(device)[None]
        centers = torch.from_numpy(geometry.groups.centers).to(device)[None]
        tokens = self.network(groups, centers, generator)[0].float()
        return align(geometry.operator, tokens)


def build_encoder(row: XyzBackbone, options: XyzOptions, checkpoint: Path | None) -> PointTransformerEncoder:
    """The encoder of one row of the table; with random weights where there is no checkpoint.

    Raises CheckpointError when the file is missing, damaged or incomplete.
    """
    network = build_point_transformer(row.variant, batchnorm=options.batchnorm, drop_path=options.drop_path)
    if checkpoint is not None and row.download is not None:
        load_point_transformer(network, POINT_TRANSFORMERS[row.variant], checkpoint, row.download)
    return PointTransformerEncoder(network, Grouping(options, options.image_size // row.stride))


def build_point_transformer(
    name: str, *, batchnorm: BatchNormStatistics = "cloud", drop_path: bool = False
) -> PointTransformer:
    """The frozen network of one row of POINT_TRANSFORMERS, with weights from torch's default generator.

    `drop_path` keeps DropPath live at the released rates.
    """
    spec = POINT_TRANSFORMERS[name]
    network = PointTransformer(
        encoder_dim=spec.encoder_dim,
        class_token=spec.class_token,
        batchnorm=batchnorm,
        drop_path=RELEASED_DROP_PATH if drop_path else 0.0,
    )
    return network.eval().requires_grad_(False)


def load_point_transformer(
    network: PointTransformer, spec: PointTransformerSpec, path: Path, download: Download
) -> None:
    """Load the encoder of an original download. Raises CheckpointError."""
    remedy = download.remedy(path.parent)
    state = entry(read_torch_file(path, remedy), "base_model", path, remedy, dict)
    load_complete(network, subset(state, spec.prefix, spec.ignored), path, remedy)
