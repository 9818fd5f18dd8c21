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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as main.py does, before torch is imported

import numpy as np

from benchmarks.data import BenchmarkClass, prepare_class
from benchmarks.timing import compare, table_row
from dataset import list_samples, load_sample
from feature_extractors.extractor import Extractor, Preparation
from feature_extractors.networks import Networks, load_networks
from feature_extractors.settings import Settings
from m3dm_runner import M3DM, DataSource, TestScores
from utils.devices import choose_device
from utils.metrics import METRICS, Predictions, measure

Precision = Literal["float32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")


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


def run(options: Options | None = None) -> list[dict[str, Any]]:
    """Rows: time of the networks on a sample, then scores and metrics of the class."""
    options = options or Options()
    settings = Settings(max_sample=options.train)
    networks = load_networks(settings, options.checkpoint_dir, options.fusion_module_path)
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_class(Path(folder), options.dataset_path)
        speed = _speed_row(data, networks, options)
        plain, ours = (_scores(data, networks, settings, name, options) for name in PRECISIONS)
    weights = "random weights" if options.checkpoint_dir is None else "given weights"
    size = f"{options.train} + {len(plain.scores)} {data.kind}, {weights}"
    return [speed, _shift_row(size, plain, ours), *_metric_rows(size, plain, ours)]


def _extractor(networks: Networks, precision: Precision, options: Options) -> Extractor:
    settings = replace(Settings(), precision=precision)
    return Extractor(settings, networks, choose_device(options.device))


def _speed_row(data: BenchmarkClass, networks: Networks, options: Options) -> dict[str, Any]:
    settings = Settings()
    files = list_samples(data.root, data.name, "train")[0]
    prepared = Preparation(settings)(load_sample(files, settings.img_size))
    plain, ours = (_extractor(networks, name, options) for name in PRECISIONS)
    result = compare(
        lambda: plain.extract([prepared])[0], lambda: ours.extract([prepared])[0], options.repeats
    )
    errors = ", ".join(f"{name} {_error(result.plain[name], result.ours[name]):.0e}" for name in result.plain)
    return result.row("networks of a sample, bf16", f"on {plain.device}", f"relative shift {errors}")


def _error(plain: Any, ours: Any) -> float:
    return float((plain.dense() - ours.dense()).norm() / plain.dense().norm())


def _scores(
    data: BenchmarkClass, networks: Networks, settings: Settings, precision: Precision, options: Options
) -> TestScores:
    runner = M3DM(
        replace(settings, precision=precision),
        _extractor(networks, precision, options),
        DataSource(data.root, 1, 1),
    )
    runner.fit(data.name)
    files = list_samples(data.root, data.name, "test")
    chosen = np.linspace(0, len(files) - 1, min(options.test, len(files))).astype(int)
    return runner._predict([files[i] for i in chosen], precision)


def _shift_row(size: str, plain: TestScores, ours: TestScores) -> dict[str, Any]:
    spread = float(plain.scores.std())
    image = float(np.abs(ours.scores - plain.scores).max()) / spread
    pixel = float(np.abs(ours.maps - plain.maps).mean() / plain.maps.std())
    ranks = bool((np.argsort(plain.scores) == np.argsort(ours.scores)).all())
    text = f"image scores within {image:.2f} of their spread, {'same' if ranks else 'other'} ranks; "
    text += f"maps on average {pixel:.3f} of theirs"
    return table_row("shift of scores, bf16", size, exactness=text)


def _metric_rows(size: str, plain: TestScores, ours: TestScores) -> list[dict[str, Any]]:
    pairs = zip(_metrics(plain).items(), _metrics(ours).values(), strict=True)
    return [
        table_row(f"{name}, bf16", size, plain=f"{a:.4f}", ours=f"{b:.4f}", exactness=f"shift {b - a:+.4f}")
        for (name, a), b in pairs
    ]


def _metrics(scores: TestScores) -> dict[str, float]:
    values = measure(Predictions(scores.labels, scores.scores, scores.masks, scores.maps))
    published = {metric.title: values[metric.key] for metric in METRICS if metric.table_file}
    return {name: value for name, value in published.items() if value is not None}


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
