"""Fit and evaluate one class with three banks at full size, against the plain way.

python benchmarks/end_to_end.py                      # all samples of the class; the plain way is added up
python benchmarks/end_to_end.py --train 8            # fewer training samples

Ours runs in full, as main.py runs it, with networks of random weights. The plain way (tests/reference/detector.py
and the plain twins) would take hours: each of its stages is timed on a few samples, and the medians are multiplied
by how often the released code runs them: features of every training sample twice, the scores of all samples, one
pass over all rows per coreset row. Reading files is left out of it.

For the class of 244 + 110 samples, the time of features and decision grows with the samples, that of scoring with
samples times bank rows, that of a coreset with the square of the rows (ours grows more slowly).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py does, before torch is imported

import numpy as np
import torch

from benchmarks.data import BenchmarkClass, prepare_class
from benchmarks.predict import compare_with_backbones
from benchmarks.timing import time_row, timed
from dataset import SampleFiles, load_sample
from evaluation.evaluate import evaluate
from feature_extractors.decision import fit_one_class_decision
from feature_extractors.networks import load_networks
from feature_extractors.settings import Settings
from feature_extractors.weights import WeightsSource
from m3dm_runner import M3DM
from tests.reference.detector import (
    plain_coreset_choices,
    plain_features,
    plain_networks,
    plain_projection,
    plain_score,
)
from tests.reference.metrics import plain_pixel_metrics
from utils.metrics import measure
from utils.observer import ClassReport
from utils.structures import Modality, Score

SETTINGS = Settings()
PATCHES: dict[Modality, int] = {"xyz": 3136, "rgb": 784, "fusion": 3136}
PROJECTED_DIM = 334
CHOICES = 8  # passes of the plain coreset that are timed
PROJECTED_SHARE = 8  # of the rows, one in so many is projected
LARGE_CLASS = (244, 110)  # training and test samples of a typical class


@dataclass(frozen=True)
class Stages:
    """Seconds of the stages of one class."""

    extract_train: float
    fit_banks: float
    fit_decision: float
    predict: float
    metrics: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class PerSample:
    """Median seconds of one sample: its features, its scores by three banks."""

    features: float
    scores: float


def run(
    train: int | None = None,
    samples: int = 2,
    num_workers: int = 1,
    dataset_path: Path | None = None,
) -> list[dict[str, Any]]:
    """The stage table, the whole, its extrapolation to LARGE_CLASS, and predict beside the bare backbones."""
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_class(Path(folder), dataset_path)
        model, ours, sizes = _run_ours(data, train, num_workers)
        few = data.samples("train")[:samples]
        our_sample = _our_sample(model, few, ours.predict / sizes[1])
        predict = compare_with_backbones(model, data, samples=12, rounds=2)
        plain, plain_sample = _plain_stages(model, few, *sizes)
    rows = [
        time_row(
            f"end to end, {name}",
            _size(data, sizes),
            getattr(plain, name),
            getattr(ours, name),
            "plain added up",
        )
        for name in (*vars(ours), "total")
    ]
    large = _extrapolated(plain, plain_sample, sizes), _extrapolated(ours, our_sample, sizes)
    note = f"both extrapolated from {sizes[0]} + {sizes[1]} samples"
    rows.append(time_row("end to end, total", _size(data, LARGE_CLASS), large[0].total, large[1].total, note))
    return [*rows, *predict]


def _run_ours(
    data: BenchmarkClass, train: int | None, num_workers: int
) -> tuple[M3DM, Stages, tuple[int, int]]:
    """The fitted model, seconds of the stages, and how many training and test samples there were."""
    settings = Settings(max_sample=train) if train else SETTINGS
    report = ClassReport()
    model = M3DM(settings, random_weights=True, device="cpu", num_workers=num_workers, observer=report)
    model.fit(data.folder)
    evaluated = evaluate(model, data.samples("test"))
    with report.stage("metrics"):
        measure(evaluated.predictions)
    return model, Stages(**report.watch.seconds), (model.counts_["train"], len(evaluated.files))


def _our_sample(model: M3DM, few: list[SampleFiles], whole: float) -> PerSample:
    """Ours on one sample: the scores timed by themselves, the rest of the `whole` second is features."""
    patches = [model.extract(files.rgb, files.xyz) for files in few]
    scores = median(timed(partial(model.detector_.score, of_sample))[0] for of_sample in patches)
    return PerSample(whole - scores, scores)


def _plain_stages(model: M3DM, few: list[SampleFiles], train: int, test: int) -> tuple[Stages, PerSample]:
    """The plain way's stages for as many samples as ours had; see the head of this file."""
    networks = plain_networks(load_networks(SETTINGS, WeightsSource(random_weights=True), model.device))
    features, scores, maps = [], [], []
    for files in few:
        sample = load_sample(files.rgb, files.xyz, SETTINGS.img_size)
        seconds, patches = timed(partial(plain_features, networks, sample))
        features.append(seconds)
        seconds, found = timed(partial(_plain_scores, model, patches))
        scores.append(seconds)
        maps.append([Score(*score) for score in found])
    one = PerSample(median(features), median(scores))
    repeated = [maps[i % len(maps)] for i in range(train)]
    svm = timed(partial(fit_one_class_decision, repeated, SETTINGS))[0]
    decide = timed(partial(model.detector_.decision.decide, maps[0]))[0]
    return Stages(
        extract_train=2 * train * one.features,  # once for the banks, once for the decision
        fit_banks=_plain_banks(train),
        fit_decision=train * one.scores + svm,
        predict=test * (one.features + one.scores + decide),
        metrics=_plain_metrics(test),
    ), one


def _plain_scores(model: M3DM, patches: dict[Modality, torch.Tensor]) -> list[tuple[float, np.ndarray]]:
    return [
        plain_score(bank.standardization.apply(patches[name]), bank.rows)
        for name, bank in model.detector_.banks.items()
    ]


def _plain_banks(train: int) -> float:
    """Projection and coreset of the three banks; as released, rgb and fusion count the rows left of xyz."""
    rng = np.random.default_rng(0)
    left = int(SETTINGS.f_coreset * PATCHES["xyz"] * train)
    total = 0.0
    for name, patches in PATCHES.items():
        count = patches * train
        part = rng.standard_normal((count // PROJECTED_SHARE, SETTINGS.dim(name)), dtype=np.float32)
        total += PROJECTED_SHARE * timed(partial(plain_projection, part))[0]
        projected = torch.from_numpy(rng.standard_normal((count, PROJECTED_DIM), dtype=np.float32))
        once = timed(partial(plain_coreset_choices, projected, 1))[0]
        more = timed(partial(plain_coreset_choices, projected, 1 + CHOICES))[0]
        choices = left if name == "xyz" else int(SETTINGS.f_coreset * left)
        total += once + (more - once) / CHOICES * (choices - 1)
    return total


def _plain_metrics(test: int) -> float:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((test, 224, 224), dtype=np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    masks[: max(1, test * 4 // 5), 90:120, 90:120] = True
    return timed(partial(plain_pixel_metrics, masks, maps))[0]


def _extrapolated(stages: Stages, sample: PerSample, sizes: tuple[int, int]) -> Stages:
    """The stages of a class of LARGE_CLASS; see the head of this file."""
    train, test = (large / size for large, size in zip(LARGE_CLASS, sizes, strict=True))
    scoring = sizes[0] * sample.scores
    return Stages(
        extract_train=train * stages.extract_train,
        fit_banks=train**2 * stages.fit_banks,
        fit_decision=train**2 * scoring + train * max(0.0, stages.fit_decision - scoring),
        predict=LARGE_CLASS[1] * (sample.features + train * sample.scores),
        metrics=test * stages.metrics,
    )


def _size(data: BenchmarkClass, sizes: tuple[int, int]) -> str:
    return f"{sizes[0]} + {sizes[1]} {data.kind}"


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, help="training samples at most (default: all)")
    parser.add_argument("--samples", type=int, default=2, help="samples that plain stages are timed on")
    parser.add_argument("--num_workers", type=int, default=1, help="loader processes (default %(default)s)")
    parser.add_argument("--dataset_path", type=Path, help="a data set that is preprocessed already")
    args = parser.parse_args()
    for row in run(**vars(args)):
        print(row, flush=True)


if __name__ == "__main__":
    main()
