"""Predict with three banks, files to scores, against nothing but the forwards of both bare backbones.

python benchmarks/predict.py                         # banks as 36 training samples give them
python benchmarks/predict.py --train 244 --device cuda

The networks have random weights. The banks' rows are patches of the class's samples with noise added, as many as
the coresets of --train samples have. Bare backbones and predict take turns; bare means the ViT on one image and
the point transformer on one prepared cloud, on all cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py does, before torch is imported

import numpy as np
import torch

from benchmarks.data import prepare_class
from dataset import SampleFiles, list_samples, load_sample
from feature_extractors.decision import OneClassDecision
from feature_extractors.extractor import Extractor, Preparation, PreparedSample
from feature_extractors.memory_bank import MemoryBank, ScoreRule
from feature_extractors.networks import load_networks
from feature_extractors.settings import Settings
from feature_extractors.training_patches import Standardization
from m3dm_runner import M3DM, DataSource
from models.vit import vit_patches
from utils.devices import choose_device
from utils.structures import Score

PATCHES = 3136  # of xyz, a sample
NOISE = 0.5  # of the banks' rows, in standard deviations of the features


def run(
    train: int = 36,
    samples: int = 8,
    rounds: int = 3,
    num_workers: int = 1,
    batch_size: int = 1,
    device: str = "auto",
    dataset_path: Path | None = None,
) -> list[dict[str, Any]]:
    """One row; times are medians over the rounds."""
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_class(Path(folder), dataset_path)
        files = list_samples(data.root, data.name, "test")
        files = (files * samples)[:samples]
        settings, source = Settings(), DataSource(data.root, num_workers, batch_size)
        extractor = Extractor(settings, load_networks(settings, None, None), choose_device(device))
        runner = M3DM(settings, extractor, source)
        prepared = [Preparation(settings)(load_sample(file, settings.img_size)) for file in files[:2]]
        _fill_detector(runner, prepared, train)
        bare, ours = [], []
        for _ in range(rounds):
            bare.append(_seconds(lambda: [_bare_forwards(extractor, one) for one in prepared]) / 2)
            ours.append(_seconds(lambda: _predict(runner, files)) / samples)
    banks = "/".join(str(len(bank.rows)) for bank in runner.detector.banks_.values())
    return [_row(f"{data.kind}, banks of {banks} rows, {extractor.device}", median(bare), median(ours))]


def _fill_detector(runner: M3DM, prepared: list[PreparedSample], train: int) -> None:
    """A detector as `train` samples would give it, without having them."""
    settings, detector = runner.settings, runner.detector
    rng = torch.Generator().manual_seed(0)
    xyz_rows = int(settings.f_coreset * PATCHES * train)
    counts = {"xyz": xyz_rows, "rgb": xyz_rows // 10, "fusion": xyz_rows // 10}
    patches = [found for one in prepared for found in runner.extractor.extract([one])]
    for name in settings.method.banks:
        rows = torch.cat([found[name].rows for found in patches])
        by = Standardization(float(rows.mean()), float(rows.std()))
        drawn = by.apply(rows[torch.randint(len(rows), (counts[name],), generator=rng).to(rows.device)])
        noise = torch.randn(drawn.shape, generator=rng).to(rows.device)
        detector.standardizations_[name] = by
        detector.banks_[name] = MemoryBank(drawn + NOISE * noise, ScoreRule.of(settings))
    if isinstance(detector.decision, OneClassDecision):
        detector.decision.fit([_random_scores(settings, seed) for seed in range(4)])


def _random_scores(settings: Settings, seed: int) -> list[Score]:
    rng = np.random.default_rng(seed)
    size = settings.img_size
    return [Score(rng.random(), rng.random((size, size), dtype=np.float32)) for _ in settings.method.banks]


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


def _predict(runner: M3DM, files: list[SampleFiles]) -> None:
    runner._predict(files, "predict")


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _row(size: str, bare: float, ours: float) -> dict[str, Any]:
    return {
        "part": "predict a sample, plain = bare backbones",
        "size": size,
        "plain": f"{1000 * bare:.0f} ms",
        "ours": f"{1000 * ours:.0f} ms",
        "ratio": round(bare / ours, 2),
        "exactness": f"{ours / bare:.2f} x the backbones' time",
        "peak_memory": None,
    }


def main() -> None:
    """Print the row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=36, help="training samples behind the banks")
    parser.add_argument("--samples", type=int, default=8, help="test samples of a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median counts")
    parser.add_argument("--num_workers", type=int, default=1, help="loader processes (default %(default)s)")
    parser.add_argument("--batch_size", type=int, default=1, help="samples a forward pass")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:I")
    parser.add_argument("--dataset_path", type=Path, help="a data set that is preprocessed already")
    for row in run(**vars(parser.parse_args())):
        print(row)


if __name__ == "__main__":
    main()
