"""Predict with three banks, files to scores, against nothing but the forwards of both bare backbones.

python benchmarks/predict.py                         # banks of all training samples
python benchmarks/predict.py --train 8 --num_workers 2

The networks have random weights. Bare backbones and predict take turns; bare means the ViT on one image and the
point transformer on one prepared cloud, with all cores at work on it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py does, before torch is imported

import torch

from benchmarks.data import BenchmarkClass, prepare_class
from benchmarks.timing import time_row, timed
from dataset import list_samples, load_sample
from feature_extractors.extractor import Extractor, Preparation, PreparedSample
from feature_extractors.networks import load_networks
from feature_extractors.settings import Settings
from m3dm_runner import M3DM, DataSource
from models.vit import vit_patches
from utils.devices import choose_device

BARE_SAMPLES = 2  # a round


def run(
    train: int | None = None,
    samples: int = 12,
    rounds: int = 3,
    num_workers: int = 1,
    batch_size: int = 1,
    device: str = "auto",
    dataset_path: Path | None = None,
) -> list[dict[str, Any]]:
    """One row; times are medians over the rounds."""
    settings = Settings(max_sample=train or Settings.max_sample)
    extractor = Extractor(settings, load_networks(settings, None, None), choose_device(device))
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_class(Path(folder), dataset_path)
        runner = M3DM(settings, extractor, DataSource(data.root, num_workers, batch_size))
        runner.fit(data.name)
        return [compare_with_backbones(runner, data, samples, rounds)]


def compare_with_backbones(runner: M3DM, data: BenchmarkClass, samples: int, rounds: int) -> dict[str, Any]:
    """The row of a fitted runner: predict on test samples and the bare backbones, in turns."""
    files = (list_samples(data.root, data.name, "test") * samples)[:samples]
    prepare, size = Preparation(runner.settings), runner.settings.img_size
    prepared = [prepare(load_sample(file, size)) for file in files[:BARE_SAMPLES]]
    bare, ours = [], []
    for _ in range(rounds):
        bare.append(timed(lambda: [_bare_forwards(runner.extractor, one) for one in prepared])[0])
        ours.append(timed(lambda: runner._predict(files, "predict"))[0])
    banks = "/".join(str(len(bank.rows)) for bank in runner.detector.banks_.values())
    description = f"{data.kind}, banks of {banks} rows, {runner.extractor.device}"
    seconds = median(bare) / len(prepared), median(ours) / samples
    note = f"{seconds[1] / seconds[0]:.2f} x the backbones' time"
    return time_row("predict a sample, plain = bare backbones", description, *seconds, note)


@torch.inference_mode()
def _bare_forwards(extractor: Extractor, prepared: PreparedSample) -> None:
    """ViT and point transformer of one sample, on all cores, nothing else."""
    assert prepared.groups is not None
    assert extractor.rgb is not None
    assert extractor.xyz is not None
    images = torch.from_numpy(prepared.sample.image)[None].to(extractor.device)
    groups = torch.from_numpy(prepared.groups.groups)[None].to(extractor.device)
    centers = torch.from_numpy(prepared.groups.centers)[None].to(extractor.device)
    vit_patches(extractor.rgb, images)
    extractor.xyz(groups, centers)
    if extractor.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Print the row."""
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
