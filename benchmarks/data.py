"""The class that benchmarks of the whole run on: real samples where they are given, else made-up ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dataset import SampleFiles, list_samples
from utils.demo_data import DemoSettings, write_demo_data
from utils.preprocessing import Parameters, preprocess_dataset

REAL_CLASS, DEMO_CLASS = "cable_gland", "bagel"
DEMO = DemoSettings(train=12, validation=0, test_per_kind=2)


@dataclass(frozen=True)
class BenchmarkClass:
    """A preprocessed class; `kind` says what the samples are."""

    root: Path
    name: str
    kind: str

    @property
    def folder(self) -> Path:
        return self.root / self.name

    def samples(self, split: str) -> list[SampleFiles]:
        """The files of "train" or "test"."""
        return list_samples(self.folder, split)


def prepare_class(folder: Path, dataset_path: Path | None = None) -> BenchmarkClass:
    """A class, preprocessed in `folder` unless `dataset_path` holds it preprocessed already.

    Raw samples are those of mvtec3d/ in the folder that M3DM_REAL_DATA names, else generated ones.
    """
    if dataset_path is not None:
        return BenchmarkClass(dataset_path, REAL_CLASS, "real samples")
    workers = os.cpu_count() or 1
    real = os.environ.get("M3DM_REAL_DATA")
    raw, name, kind = folder / "raw", DEMO_CLASS, "generated samples"
    if real:
        raw, name, kind = Path(real) / "mvtec3d", REAL_CLASS, "real samples"
    else:
        write_demo_data(raw, DEMO, workers)
    preprocess_dataset(raw, folder / "preprocessed", Parameters(), workers, progress=False)
    return BenchmarkClass(folder / "preprocessed", name, kind)
