"""The loops of one class: extract and fit on the training samples, score the test samples, measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import (
    BadSample,
    DatasetError,
    SampleDataset,
    SampleFiles,
    list_samples,
    stored_image,
    stored_mask,
)
from feature_extractors.detector import Detector
from feature_extractors.extractor import Extractor, Preparation, PreparedSample
from feature_extractors.memory_bank.training_patches import PatchCollector, TrainingPatches
from feature_extractors.networks import RANDOM
from feature_extractors.settings import Settings
from models.uff.feature_store import FeatureStoreWriter, StoreMeta
from models.vit import VITS
from utils.metrics import pixel_metrics, roc_auc
from utils.parallel import map_on_cores
from utils.pictures import resize_map, write_map, write_picture
from utils.resources import Stopwatch, peak_memory_mb, reset_peak_memory
from utils.structures import Modality, Patches

Result = TypeVar("Result")

DTYPES = {"float32": torch.float32, "float16": torch.float16}
STORED_DTYPE: Literal["float16"] = "float16"  # of features on disk, unless --feature_dtype says otherwise
FEATURE_QUIRKS = ("batchnorm", "drop_path", "interpolation")  # those that change the features
FEATURE_SETTINGS = ("num_group", "group_size", "precision")
SHOWN_REASONS = 3  # of left-out samples, in an error
PICTURE_RANGE = (0.5, 99.9)  # percentiles of a class's map values that get the first and the last colour


@dataclass(frozen=True)
class DataSource:
    """Where the samples are and how they are loaded."""

    root: Path
    num_workers: int
    batch_size: int


@dataclass
class ClassReport:
    """What is known of a class so far; `as_dict` is its entry in results.json."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    remarks: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    watch: Stopwatch = field(default_factory=Stopwatch)
    peak_memory_mb: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.metrics,
            "seconds": {name: round(value, 3) for name, value in self.watch.seconds.items()},
            "peak_memory_mb": self.peak_memory_mb,
            "counts": self.counts,
            "remarks": self.remarks,
            "skipped_samples": self.skipped,
        }


@dataclass(frozen=True)
class TestScores:
    """The scored test samples of a class, in order; maps and masks (n, S, S)."""

    files: list[SampleFiles]
    scores: np.ndarray
    maps: np.ndarray
    masks: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return np.array([files.label for files in self.files])

    def rows(self) -> list[tuple[str, int, float]]:
        """Path, label and score of each sample."""
        return [(f.path, f.label, float(s)) for f, s in zip(self.files, self.scores, strict=True)]


class M3DM:
    """One class: fit(class_name) on its training samples, then evaluate(class_name) on its test samples."""

    def __init__(
        self,
        settings: Settings,
        extractor: Extractor,
        data: DataSource,
        store: FeatureStoreWriter | None = None,
    ) -> None:
        self.settings = settings
        self.extractor = extractor
        self.data = data
        self.store = store
        self.detector = Detector(settings)
        self.report = ClassReport()

    def fit(self, class_name: str) -> M3DM:
        """Extract each training sample once, fill the banks, fit the decision.

        Raises DatasetError when no training sample can be used.
        """
        reset_peak_memory()
        self.extractor.generator.manual_seed(self.settings.seed)  # no class depends on those before it
        files = list_samples(self.data.root, class_name, "train")[: self.settings.sample_limit]
        with self.report.watch.stage("extract_train"):
            training = self._training_patches(class_name, files)
        with self.report.watch.stage("fit_banks"):
            self.detector.fit_banks(training)
        with self.report.watch.stage("fit_decision"):
            self.detector.fit_decision(training)
        for name, bank in self.detector.banks_.items():
            self.report.counts[f"{name}_bank_rows"] = len(bank.rows)
        return self

    def evaluate(self, class_name: str) -> TestScores:
        """Score every test sample and measure. Raises DatasetError when none can be used."""
        files = list_samples(self.data.root, class_name, "test")
        with self.report.watch.stage("predict"):
            scores = self._predict(files, f"{class_name} test")
        with self.report.watch.stage("metrics"):
            pixels = pixel_metrics(scores.masks, scores.maps)
            self.report.metrics = {
                "image_rocauc": roc_auc(scores.labels, scores.scores),
                "pixel_rocauc": pixels.pixel_rocauc,
                "au_pro": pixels.au_pro,
            }
        labels = scores.labels
        self.report.counts |= {"test": len(labels), "test_anomalous": int(labels.sum())}
        self.report.peak_memory_mb = peak_memory_mb()
        return scores

    def _training_patches(self, class_name: str, files: list[SampleFiles]) -> dict[Modality, TrainingPatches]:
        banks = self.settings.method.banks
        dtype = DTYPES[self.settings.feature_dtype] if self.settings.feature_dtype else None
        collectors: dict[Modality, PatchCollector] = {
            name: PatchCollector(len(files), dtype) for name in banks
        }
        count = 0
        for _, patches in self._process(files, f"{class_name} train", lambda patches: patches):
            for name in banks:
                collectors[name].add(patches[name])
            if self.store is not None:
                self.store.save(class_name, count, patches)
            count += 1
        if count == 0:
            raise DatasetError(
                f"{self.data.root / class_name}: no training sample can be used; {self._reasons()}"
            )
        if self.store is not None:
            self.store.complete_class(class_name, count)
        self.report.counts["train"] = count
        return {name: collector.joined() for name, collector in collectors.items()}

    def _predict(self, files: list[SampleFiles], title: str) -> TestScores:
        by_path = {sample.path: sample for sample in files}
        kept, scores, maps, masks = [], [], [], []
        for prepared, score in self._process(files, title, self.detector.predict):
            sample = prepared.sample
            if not np.isfinite(score.image):
                self._skip(BadSample(sample.path, f"its score is {score.image}"))
                continue
            kept.append(by_path[sample.path])
            scores.append(score.image)
            maps.append(score.map)
            masks.append(sample.mask)
        if not kept:
            raise DatasetError(f"{files[0].rgb.parents[2]}: no test sample can be used; {self._reasons()}")
        return TestScores(kept, np.array(scores), np.stack(maps), np.stack(masks))

    def _process(
        self,
        files: list[SampleFiles],
        title: str,
        finish: Callable[[dict[Modality, Patches]], Result],
    ) -> Iterator[tuple[PreparedSample, Result]]:
        """`finish` of the patches of each sample that can be used, in order; the others are reported."""

        def work(batch: list[PreparedSample | BadSample]) -> list[BadSample | tuple[PreparedSample, Result]]:
            usable = [item for item in batch if isinstance(item, PreparedSample)]
            patches = iter(self.extractor.extract(usable) if usable else [])
            return [
                item if isinstance(item, BadSample) else _finished(item, next(patches), finish)
                for item in batch
            ]

        with tqdm(total=len(files), desc=title, unit="sample", disable=None) as bar:
            for results in map_on_cores(work, self._loader(files), self.extractor.batches_at_once):
                for result in results:
                    if isinstance(result, BadSample):
                        self._skip(result)
                    else:
                        self._remark(result[0])
                        yield result
                bar.update(len(results))

    def _loader(self, files: list[SampleFiles]) -> DataLoader:
        samples = SampleDataset(files, self.settings.img_size, Preparation(self.settings))
        if self.data.num_workers > 0:
            samples[0]  # compiles the kernels here once, not in every worker
        return DataLoader(
            samples,
            batch_size=self.data.batch_size,
            num_workers=self.data.num_workers,
            collate_fn=list,
        )

    def _reasons(self) -> str:
        """Why samples were left out, the first few."""
        reasons = [f"{sample['path']}: {sample['reason']}" for sample in self.report.skipped]
        return "; ".join(reasons[:SHOWN_REASONS]) + (" ..." if len(reasons) > SHOWN_REASONS else "")

    def _skip(self, bad: BadSample) -> None:
        self.report.skipped.append({"path": bad.path, "reason": bad.reason})
        tqdm.write(f"left out {bad.path}: {bad.reason}")

    def _remark(self, prepared: PreparedSample) -> None:
        for remark in prepared.remarks:
            self.report.remarks.append({"path": prepared.sample.path, "remark": remark})
            tqdm.write(f"{prepared.sample.path}: {remark}")


def _finished(
    prepared: PreparedSample,
    patches: dict[Modality, Patches],
    finish: Callable[[dict[Modality, Patches]], Result],
) -> BadSample | tuple[PreparedSample, Result]:
    """The sample with `finish` of its patches, unless those are not finite."""
    ruined = [name for name, found in patches.items() if not torch.isfinite(found.rows).all()]
    if ruined:
        return BadSample(prepared.sample.path, f"its {' and '.join(ruined)} features are not finite")
    return prepared, finish(patches)


def open_store(
    folder: Path, settings: Settings, sources: dict[str, str], dataset: str
) -> AbstractContextManager[FeatureStoreWriter]:
    """The folder that `--save_feature` fills with features of `dataset`, for backbones with weights from `sources`.

    Raises ValueError when it holds features of another kind, OSError when another run has it open.
    """
    quirks = settings.quirks
    meta = StoreMeta(
        dataset=dataset,
        rgb_backbone=settings.rgb_backbone_name,
        xyz_backbone=settings.xyz_backbone_name,
        rgb_dim=VITS[settings.rgb_backbone_name].dim,
        xyz_dim=settings.xyz_dim,
        rgb_side=settings.rgb_side,
        xyz_side=settings.xyz_side,
        pairing=quirks.uff_pairing,
        feature_dtype=settings.feature_dtype or STORED_DTYPE,
        random_weights=any(sources[name].startswith(RANDOM) for name in ("rgb", "xyz")),
        extraction={
            **{name: getattr(quirks, name) for name in FEATURE_QUIRKS},
            **{name: str(getattr(settings, name)) for name in FEATURE_SETTINGS},
            **{f"{name}_weights": sources[name] for name in ("rgb", "xyz")},
        },
    )
    return FeatureStoreWriter.open(folder, meta)


def save_predictions(folder: Path, class_name: str, scores: TestScores) -> None:
    """Per test sample a picture `<class>/<defect>/<stem>.png`, and the float32 map at the stored image's size,
    `<class>/test/<defect>/<stem>.tiff`.
    """
    low, high = np.percentile(scores.maps, PICTURE_RANGE)
    for files, anomaly_map in zip(scores.files, scores.maps, strict=True):
        image = stored_image(files)
        shape = (image.shape[0], image.shape[1])
        resized = resize_map(anomaly_map, shape)
        defect, stem = files.rgb.parents[1].name, files.rgb.stem
        write_map(folder / class_name / "test" / defect / f"{stem}.tiff", resized)
        picture = folder / class_name / defect / f"{stem}.png"
        write_picture(picture, image, stored_mask(files, shape), resized, (float(low), float(high)))
