"""The point transformers with their weights, from the original downloads of Point-MAE and Point-BERT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.checkpoints import Download, entry, load_complete, read_torch_file, subset
from models.point_transformer.transformer import PointTransformer, build_point_transformer

BatchNorm = Literal["cloud", "running"]


@dataclass(frozen=True)
class PointWeights:
    """Where a download keeps the encoder: the prefix of its keys, and keys under it that are not the encoder's."""

    download: Download
    prefix: str
    ignore: tuple[str, ...] = ()


POINT_WEIGHTS = {
    "Point_MAE": PointWeights(Download("pointmae_pretrain.pth", "Point-MAE"), "MAE_encoder."),
    "Point_Bert": PointWeights(Download("Point-BERT.pth", "Point-BERT"), "transformer_q.", ("cls_head",)),
}


def load_point_transformer(
    name: str, checkpoint_dir: Path, *, batchnorm: BatchNorm, drop_path: bool
) -> PointTransformer:
    """The frozen point transformer `name` with the weights of its original download.

    Raises CheckpointError when the file is missing, damaged or incomplete.
    """
    weights = POINT_WEIGHTS[name]
    path, remedy = weights.download.path_in(checkpoint_dir), weights.download.remedy()
    state = entry(read_torch_file(path, remedy), "base_model", path, remedy, dict)
    model = build_point_transformer(name, batchnorm=batchnorm, drop_path=drop_path)
    load_complete(model, subset(state, weights.prefix, weights.ignore), path, remedy)
    return _frozen(model)


def random_point_transformer(name: str, *, batchnorm: BatchNorm, drop_path: bool) -> PointTransformer:
    """The frozen point transformer `name` with random weights, drawn from torch's default generator."""
    return _frozen(build_point_transformer(name, batchnorm=batchnorm, drop_path=drop_path))


def _frozen(model: PointTransformer) -> PointTransformer:
    return model.eval().requires_grad_(False)
