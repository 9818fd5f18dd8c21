"""From a cloud to patches by a point transformer: groups and PFA on the CPU, tokens on the device.

With `--point_ops cuda` the groups, too, are made on the device.

The two networks that M3DM knows, Point-MAE's and Point-BERT's encoders, with the weights of their original downloads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.alignment import align, alignment_operator
from models.backbones import PreparedCloud, XyzBackbone, XyzOptions
from models.checkpoints import entry, load_complete, read_torch_file, subset
from models.downloads import Download
from models.point_transformer.cuda_point_ops import CudaPointOps, load_cuda_point_ops
from models.point_transformer.group_encoder import BatchNormStatistics
from models.point_transformer.point_ops import check_finite, group_points
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
    """Groups and aligns a sample's points on the CPU; a picklable callable for the loader's workers."""

    options: XyzOptions
    side: int

    def __call__(self, sample: Sample) -> PreparedCloud:
        groups = group_points(sample.points, self.options.num_group, self.options.group_size)
        operator = self.operator(sample.points, sample.pixel_index, groups.centers)
        return PreparedCloud(GroupedCloud(groups, operator), self.remarks(len(sample.points)))

    def operator(self, points: np.ndarray, pixel_index: np.ndarray, centers: np.ndarray) -> AlignmentOperator:
        """PFA of points (N, 3) at pixels (N,) from centers (G, 3)."""
        return alignment_operator(
            points,
            pixel_index,
            centers,
            image_size=self.options.image_size,
            side=self.side,
            interpolation=self.options.interpolation,
        )

    def remarks(self, count: int) -> tuple[str, ...]:
        """What is odd about a cloud of so many points."""
        wanted = max(self.options.num_group, self.options.group_size)
        if count >= wanted:
            return ()
        return (f"the cloud has {count} points, --num_group and --group_size want {wanted}: fewer are used",)


@dataclass(frozen=True)
class UngroupedCloud:
    """A cloud whose groups are yet to be made: points (N, 3) float32 and their pixels (N,)."""

    points: np.ndarray
    pixel_index: np.ndarray


@dataclass(frozen=True)
class HandOver:
    """Leaves the groups to the GPU; a picklable callable for the loader's workers, which have none."""

    grouping: Grouping

    def __call__(self, sample: Sample) -> PreparedCloud:
        check_finite(sample.points)
        cloud = UngroupedCloud(sample.points, sample.pixel_index)
        return PreparedCloud(cloud, self.grouping.remarks(len(sample.points)))


@dataclass(frozen=True)
class PointTransformerEncoder:
    """A frozen point transformer with its way from clouds to patches; a CloudEncoder."""

    network: PointTransformer
    prepare: Grouping

    def to(self, device: torch.device) -> PointTransformerEncoder:
        return PointTransformerEncoder(self.network.to(device), self.prepare)

    def patches(self, geometry: GroupedCloud, generator: torch.Generator) -> Patches:
        """(G, M, 3) groups -> (G, 1152) tokens -> (P, 1152) patches, float32."""
        device = _device(self.network)
        groups = torch.from_numpy(geometry.groups.groups).to(device)
        centers = torch.from_numpy(geometry.groups.centers).to(device)
        return align(geometry.operator, _tokens(self.network, groups, centers, generator))


@dataclass(frozen=True)
class GpuGroupingEncoder:
    """As PointTransformerEncoder, but the groups are made on the network's GPU; a CloudEncoder.

    PFA needs the centers, so its operator, too, is made here and no longer by the loader's workers.
    """

    network: PointTransformer
    prepare: HandOver
    ops: CudaPointOps

    def to(self, device: torch.device) -> GpuGroupingEncoder:
        return GpuGroupingEncoder(self.network.to(device), self.prepare, self.ops)

    def patches(self, geometry: UngroupedCloud, generator: torch.Generator) -> Patches:
        """(N, 3) points -> (G, M, 3) groups -> (G, 1152) tokens -> (P, 1152) patches, float32."""
        grouping = self.prepare.grouping
        points = torch.from_numpy(geometry.points).to(_device(self.network))
        groups, centers = self.ops.group(points, grouping.options.num_group, grouping.options.group_size)
        operator = grouping.operator(geometry.points, geometry.pixel_index, centers.cpu().numpy())
        return align(operator, _tokens(self.network, groups, centers, generator))


def _tokens(network: PointTransformer, groups: Tensor, centers: Tensor, generator: torch.Generator) -> Tensor:
    """(G, M, 3), (G, 3) -> (G, 1152) float32."""
    return network(groups[None], centers[None], generator)[0].float()


def _device(network: PointTransformer) -> torch.device:
    return network.norm.weight.device


def build_encoder(
    row: XyzBackbone, options: XyzOptions, checkpoint: Path | None
) -> PointTransformerEncoder | GpuGroupingEncoder:
    """The encoder of one row of the table; with random weights where there is no checkpoint.

    Raises CheckpointError when the file is missing, damaged or incomplete, and ValueError when point_ops is "cuda" and
    its packages can't be loaded.
    """
    network = build_point_transformer(row.variant, batchnorm=options.batchnorm, drop_path=options.drop_path)
    if checkpoint is not None and row.download is not None:
        load_point_transformer(network, POINT_TRANSFORMERS[row.variant], checkpoint, row.download)
    grouping = Grouping(options, options.image_size // row.stride)
    if options.point_ops == "cuda":
        return GpuGroupingEncoder(network, HandOver(grouping), load_cuda_point_ops())
    return PointTransformerEncoder(network, grouping)


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
