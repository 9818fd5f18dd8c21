"""Predict with three banks, files to scores, against nothing but the forwards of both bare backbones.

python benchmarks/predict.py                         # banks of all training samples
python benchmarks/predict.py --train 8 --num_workers 2

Two rows: many parts through the pipeline, which prepares the next in other processes and gives each core a part of
its own, and M3DM.predict of one part after another, all of whose steps wait for each other.

The networks have random weights. Bare backbones and both ways to predict take turns; bare means the ViT on one image
and the point transformer on one prepared cloud, with all cores at work on it. The notes are medians of the quotient of
neighbours in time, which hold where the machine's load changes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py does, before torch is imported

import numpy as np
import torch
from torch import nn

from benchmarks.data import BenchmarkClass, prepare_class
from benchmarks.timing import time_row, timed, wait_for
from dataset import SampleFiles, load_sample
from feature_extractors.networks import load_networks
from feature_extractors.settings import Settings
from feature_extractors.weights import WeightsSource
from m3dm_runner import M3DM
from models.point_transformer.encoder import PointTransformerEncoder
from models.point_transformer.transformer import PointTransformer

PARTS = 3  # one after another, a round


class BareBackbones:
    """The networks of a model and the tensors that they take, nothing around them."""

    def __init__(self, model: M3DM) -> None:
        networks = load_networks(model.settings, WeightsSource(random_weights=True), model.device)
        assert isinstance(networks.rgb, nn.Module)
        assert isinstance(networks.xyz, PointTransformerEncoder)
        self.rgb: nn.Module = networks.rgb
        self.xyz: PointTransformer = networks.xyz.network
        self.prepare = networks.xyz.prepare
        self.device, self.image_size = model.device, model.settings.img_size

    def inputs(self, part: SampleFiles) -> tuple[torch.Tensor, ...]:
        """Image (1, 3, S, S), groups (1, G, M, 3) and centres (1, G, 3) of a part."""
        sample = load_sample(part.rgb, part.xyz, self.image_size)
        groups = self.prepare(sample).geometry.groups
        arrays = (sample.image, groups.groups, groups.centers)
        return tuple(torch.from_numpy(array)[None].to(self.device) for array in arrays)

    @torch.inference_mode()
    def forward(self, image: torch.Tensor, groups: torch.Tensor, centers: torch.Tensor) -> None:
        self.rgb(image)
        self.xyz(groups, centers)
        wait_for(self.device)


def run(
    train: int | None = None,
    samples: int = 12,
    rounds: int = 3,
    num_workers: int = 1,
    batch_size: int = 1,
    device: str = "auto",
    dataset_path: Path | None = None,
) -> list[dict[str, Any]]:
    """Two rows; times are medians over the rounds."""
    settings = Settings(max_sample=train or Settings.max_sample)
    model = M3DM(settings, random_weights=True, device=device, batch_size=batch_size, num_workers=num_workers)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_class(Path(folder), dataset_path)
        return compare_with_backbones(model.fit(data.folder), data, samples, rounds)


def compare_with_backbones(
    model: M3DM, data: BenchmarkClass, samples: int, rounds: int
) -> list[dict[str, Any]]:
    """The rows of a fitted model: both ways to predict test samples and the bare backbones, in turns."""
    parts = (data.samples("test") * samples)[:samples]
    backbones = BareBackbones(model)
    inputs = [backbones.inputs(part) for part in parts[:PARTS]]
    backbones.forward(*inputs[0])
    model.predict(parts[0].rgb, parts[0].xyz)
    bare, single, many = np.empty((rounds, len(inputs))), np.empty((rounds, len(inputs))), np.empty(rounds)
    for i in range(rounds):
        for j, tensors in enumerate(inputs):
            bare[i, j] = timed(partial(backbones.forward, *tensors))[0]
            single[i, j] = timed(partial(model.predict, parts[j].rgb, parts[j].xyz))[0]
        many[i] = timed(lambda: list(model.predict_all(parts)))[0] / samples
    banks = "/".join(str(len(bank.rows)) for bank in model.detector_.banks.values())
    size = f"{data.kind}, banks of {banks} rows, {model.device}"
    return [
        _row("predict a sample", size, bare, many, many / np.median(bare, axis=1)),
        _row("M3DM.predict a part", size, bare, single, single / bare),
    ]


def _row(part: str, size: str, bare: np.ndarray, ours: np.ndarray, quotients: np.ndarray) -> dict[str, Any]:
    seconds = float(np.median(bare)), float(np.median(ours))
    note = f"{np.median(quotients):.2f} x the backbones' time"
    return time_row(f"{part}, plain = bare backbones", size, *seconds, note)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, help="training samples at most (default: all)")
    parser.add_argument("--samples", type=int, default=12, help="test samples of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--num_workers", type=int, default=1, help="loader processes (default %(default)s)")
    parser.add_argument("--batch_size", type=int, default=1, help="samples a forward pass")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:I")
    parser.add_argument("--dataset_path", type=Path, help="a data set that is preprocessed already")
    for row in run(**vars(parser.parse_args())):
        print(row)


if __name__ == "__main__":
    main()
