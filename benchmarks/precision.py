"""--precision bf16 against float32 on one class: speed of the backbones, shift of features, scores and metrics.

python benchmarks/precision.py                       # 6 training and 5 test samples, random weights
python benchmarks/precision.py --train 36 --test 20 --checkpoint_dir checkpoints --fusion_module_path uff.pth

Column "plain" is float32, "ours" is bf16; both are whole runs of fit and evaluate.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py does, before torch is imported

import numpy as np

from benchmarks.data import BenchmarkClass, prepare_class
from benchmarks.timing import compare, table_row, wait_for
from dataset import load_sample
from evaluation.evaluate import evaluate
from feature_extractors.extractor import Extractor
from feature_extractors.networks import load_networks
from feature_extractors.settings import Settings
from feature_extractors.weights import WeightsSource
from m3dm_runner import M3DM
from utils.devices import choose_device
from utils.metrics import Predictions, measure
from utils.structures import Modality, Patches

Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")
METRICS = {"image_rocauc": "image ROC AUC", "pixel_rocauc": "pixel ROC AUC", "au_pro": "AU-PRO"}


@dataclass(frozen=True)
class Options:
    """What is compared on what; see --help."""

    train: int = 6
    test: int = 5
    repeats: int = 3
    device: str = "auto"
    dataset_path: Path | None = None
    checkpoint_dir: Path | None = None
    fusion_module_path: Path | None = None

    @property
    def weights(self) -> WeightsSource:
        """Random where no folder is named."""
        return WeightsSource(
            self.checkpoint_dir or Path(), self.fusion_module_path, random_weights=self.checkpoint_dir is None
        )


def run(options: Options | None = None) -> list[dict[str, Any]]:
    """Rows: time of the networks on a sample, then scores and metrics of the class."""
    options = options or Options()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_class(Path(folder), options.dataset_path)
        speed = _speed_row(data, options)
        plain, ours = (_predictions(data, name, options) for name in PRECISIONS)
    weights = "random weights" if options.checkpoint_dir is None else "given weights"
    size = f"{options.train} + {len(plain.scores)} {data.kind}, {weights}"
    return [speed, _shift_row(size, plain, ours), *_metric_rows(size, plain, ours)]


def _speed_row(data: BenchmarkClass, options: Options) -> dict[str, Any]:
    device = choose_device(options.device)
    networks = load_networks(Settings(), options.weights, device)
    plain, ours = (Extractor(Settings(precision=name), networks, device) for name in PRECISIONS)
    files = data.samples("train")[0]
    prepared = plain.preparation(load_sample(files.rgb, files.xyz, Settings().img_size))

    def extract(extractor: Extractor) -> dict[Modality, Patches]:
        patches = extractor.extract([prepared])[0]
        wait_for(device)
        return patches

    result = compare(partial(extract, plain), partial(extract, ours), options.repeats)
    errors = ", ".join(f"{name} {_error(result.plain[name], result.ours[name]):.0e}" for name in result.plain)
    return result.row("networks of a sample, bf16", f"on {device}", f"relative shift {errors}")


def _error(plain: Any, ours: Any) -> float:
    return float((plain.dense() - ours.dense()).norm() / plain.dense().norm())


def _predictions(data: BenchmarkClass, precision: Precision, options: Options) -> Predictions:
    weights = options.weights
    model = M3DM(
        Settings(max_sample=options.train, precision=precision),
        checkpoint_dir=weights.checkpoint_dir,
        fusion_module_path=weights.fusion_module_path,
        random_weights=weights.random_weights,
        device=options.device,
        num_workers=1,
    )
    files = data.samples("test")
    chosen = np.linspace(0, len(files) - 1, min(options.test, len(files))).astype(int)
    return evaluate(model.fit(data.folder), [files[i] for i in chosen]).predictions


def _shift_row(size: str, plain: Predictions, ours: Predictions) -> dict[str, Any]:
    spread = float(plain.scores.std())
    image = float(np.abs(ours.scores - plain.scores).max()) / spread
    pixel = float(np.abs(ours.maps - plain.maps).mean() / plain.maps.std())
    ranks = bool((np.argsort(plain.scores) == np.argsort(ours.scores)).all())
    text = f"image scores within {image:.2f} of their spread, {'same' if ranks else 'other'} ranks; "
    text += f"maps on average {pixel:.3f} of theirs"
    return table_row("shift of scores, bf16", size, exactness=text)


def _metric_rows(size: str, plain: Predictions, ours: Predictions) -> list[dict[str, Any]]:
    before, after = measure(plain), measure(ours)
    return [
        table_row(f"{title}, bf16", size, plain=f"{a:.4f}", ours=f"{b:.4f}", exactness=f"shift {b - a:+.4f}")
        for name, title in METRICS.items()
        if (a := before[name]) is not None and (b := after[name]) is not None
    ]


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in vars(Options()).items():
        kind = Path if default is None else type(default)
        parser.add_argument(f"--{name}", type=kind, default=default)
    for row in run(Options(**vars(parser.parse_args()))):
        print(row, flush=True)


if __name__ == "__main__":
    main()
