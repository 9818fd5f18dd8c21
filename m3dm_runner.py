"""M3DM, the object one holds.

from m3dm_runner import M3DM, Settings
model = M3DM(Settings(method_name="DINO+Point_MAE"), checkpoint_dir="checkpoints")
model.fit("datasets/mvtec3d/bagel")
score = model.predict("part.png", "part.tiff")   # score.image, score.map; higher = more anomalous
model.save("bagel.m3dm")
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset import (
    DatasetError,
    Pair,
    Picture,
    as_parts,
    check_plausible,
    list_samples,
    load_part,
    part_names,
)
from feature_extractors.calibration import MAX, Calibration, ThresholdRule
from feature_extractors.detector import Detector, fit_banks, fit_decision
from feature_extractors.detector_file import (
    DetectorFileError,
    Header,
    RowsDtype,
    read_detector,
    read_header,
    write_detector,
)
from feature_extractors.extractor import Extractor
from feature_extractors.feature_cache import FeatureCache
from feature_extractors.memory_bank.training_patches import PatchCollector, TrainingPatches
from feature_extractors.networks import load_networks
from feature_extractors.pipeline import Pipeline, check_features
from feature_extractors.settings import Settings
from feature_extractors.weights import WeightsSource
from models.backbones import PointOps
from utils.devices import choose_device
from utils.observer import Observer
from utils.structures import Modality, Patches, Sample, Score
from utils.versions import versions

__all__ = ["M3DM", "NotFittedError", "Settings"]

DTYPES = {"float32": torch.float32, "float16": torch.float16}


class NotFittedError(RuntimeError):
    """A score was asked of a model that has seen no good part yet."""


class M3DM:
    """One of the methods, with its networks: fit on good parts, then predict others.

    checkpoint_dir: folder of the downloaded weights; fusion_module_path: the UFF checkpoint (default: the release's
    checkpoints/checkpoint-0.pth); random_weights: none of them, for smoke tests only. device: auto, cpu, cuda or
    cuda:I. point_ops: who makes the groups of points, the loader's processes (cpu) or the GPU (cuda); the same but for
    ties (docs/point_ops.md). batch_size, num_workers: samples a forward pass and loader processes; no result depends on
    them. features: folder that keeps what the backbones extract of a data set's samples, for the next time. observer:
    is told of stages, progress and odd samples.

    After `fit` or `load`, attributes ending in _ are there: detector_ (banks and decision), counts_ (training
    samples, rows of each bank), calibration_ (thresholds; None before `calibrate`), preprocessing_ (how the data that
    it was fitted on were preprocessed; None where unknown), versions_ (of the packages that fitted it). Raises
    ValueError or CheckpointError for what is wrong with the arguments.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        checkpoint_dir: str | Path = "checkpoints",
        fusion_module_path: str | Path | None = None,
        random_weights: bool = False,
        device: str = "auto",
        point_ops: PointOps = "cpu",
        batch_size: int = 1,
        num_workers: int = 0,
        features: str | Path | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.device = choose_device(device)
        self.point_ops = point_ops
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.observer = observer or Observer()
        fusion_path = None if fusion_module_path is None else Path(fusion_module_path)
        weights = WeightsSource(Path(checkpoint_dir), fusion_path, random_weights)
        networks = load_networks(self.settings, weights, self.device, point_ops)
        self.weights = networks.origins
        self._extractor = Extractor(self.settings, networks, self.device)
        self._load = partial(load_part, image_size=self.settings.img_size)
        self.keep_features(features)

    def keep_features(self, folder: str | Path | None) -> None:
        """From now on take features from `folder`, and keep there those that it lacks; None: no longer."""
        self._cache = (
            None
            if folder is None
            else FeatureCache(Path(folder), self.settings, self.weights, self.point_ops)
        )

    def with_random_state(self, random_state: int | None) -> M3DM:
        """This model with another `random_state`, not fitted; the two share their networks."""
        other = copy.copy(self)
        other.settings = replace(self.settings, random_state=random_state)
        other.forget()
        return other

    def fit(
        self, samples: str | Path | Iterable[tuple[Picture, Picture]], *, unchecked: bool = False
    ) -> M3DM:
        """Fill the banks and fit the decision on good parts; returns self.

        samples: a class's folder, whose train/good is taken, or pairs of image and cloud, files or arrays; of
        either at most `max_sample`. Samples that can't be used are left out, and the observer is told. Raises
        DatasetError when none is left, and, unless `unchecked`, for a folder that looks raw or in millimetres.
        """
        if isinstance(samples, (str, Path)):
            items: Sequence[Any] = list_samples(Path(samples), "train")
            for odd in [] if unchecked else check_plausible(items):
                warnings.warn(odd, stacklevel=2)
        else:
            items = as_parts(samples)
        items = items[: self.settings.sample_limit]
        return self.fit_patches(self.extract_all(items, "train"), expected=len(items))

    def fit_patches(self, patches: Iterable[Mapping[Modality, Patches] | None], expected: int) -> M3DM:
        """`fit` on the patches of samples, as `extract_all` gives them; about `expected` samples, to save memory."""
        with self.observer.stage("extract_train"):
            training, count = self._collected(patches, expected)
        with self.observer.stage("fit_banks"):
            banks = fit_banks(training, self.settings)
        with self.observer.stage("fit_decision"):
            decision = fit_decision(banks, training, self.settings)
        self.detector_ = Detector(banks, decision)
        rows = {f"{name}_bank_rows": len(bank.rows) for name, bank in banks.items()}
        self.counts_ = {"train": count, **rows}
        self.calibration_: Calibration | None = None
        self.preprocessing_: dict[str, Any] | None = None
        self.versions_ = versions()
        return self

    def calibrate(self, samples: Iterable[Any], rule: str = MAX, origin: str = "held-out parts") -> M3DM:
        """Set the thresholds by good parts that did not feed the banks; returns self.

        samples: as for `predict_all`; rule: as --threshold_rule. Raises ValueError when none can be scored.
        """
        items = as_parts(samples)
        scores = [score for score in self.predict_all(items, origin) if score is not None]
        self.calibration_ = Calibration.of(scores, ThresholdRule(rule), origin)
        return self

    def predict(self, rgb: Picture, xyz: Picture) -> Score:
        """Image score and map of one part, files or arrays; higher = more anomalous.

        Raises ValueError when the part can't be used, and NotFittedError before `fit`.
        """
        return self._fitted().score(self.extract(rgb, xyz))

    def extract(self, rgb: Picture, xyz: Picture) -> dict[Modality, Patches]:
        """The patches of one part by modality, without any bank. Raises ValueError when the part can't be used."""
        prepared = self._extractor.preparation(self._load(Pair(rgb, xyz)))
        patches = self._extractor.extract([prepared])[0]
        check_features(patches)
        return patches

    def extract_all(
        self, samples: Sequence[Any], title: str = ""
    ) -> Iterator[dict[Modality, Patches] | None]:
        """The patches of many parts, in order; None for one that can't be used, of which the observer is told.

        samples: SampleFiles, or pairs of image and cloud.
        """
        items = as_parts(samples)
        return self._pipeline().run(items, part_names(items), dict, self.observer, title)

    def predict_all(
        self, samples: Iterable[Any], title: str = "", load: Callable[[Any], Sample] | None = None
    ) -> Iterator[Score | None]:
        """The scores of many parts, as `extract_all` gives their patches; `load` reads them in another way."""
        items = as_parts(samples)
        detector = self._fitted()

        def score(patches: Mapping[Modality, Patches]) -> Score:
            return plausible(detector.score(patches))

        return self._pipeline(load).run(items, part_names(items), score, self.observer, title)

    def forget(self) -> None:
        """Give the detector's memory back; the model is then as if it had never been fitted."""
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)

    def save(self, path: str | Path, dtype: RowsDtype = "float32") -> None:
        """Write the fitted detector to one file, without the networks; `dtype` of the bank rows."""
        detector = self._fitted()
        header = Header(
            settings=self.settings.as_dict(),
            weights=self.weights,
            versions=self.versions_,
            counts=self.counts_,
            calibration=self.calibration_.as_dict() if self.calibration_ else None,
            preprocessing=self.preprocessing_,
        )
        write_detector(Path(path), detector, header, dtype)

    @classmethod
    def load(cls, path: str | Path, **how: Any) -> M3DM:
        """The model of a saved detector, without a new fit; `how` are the arguments of M3DM but for settings.

        Raises DetectorFileError when the file is damaged, or was fitted with other weights than those given.
        """
        _, settings = read_header(Path(path))
        return cls(settings, **how).restore(path)

    def restore(self, path: str | Path) -> M3DM:
        """Take a saved detector in the place of `fit`; returns self.

        Raises DetectorFileError when it is damaged, or was fitted with other settings or weights than this model's.
        """
        detector, header, settings = read_detector(Path(path), self.device)
        _check_same("settings", settings.as_dict(), self.settings.as_dict(), path)
        _check_same("weights", header.weights, self.weights, path)
        self.detector_, self.counts_ = detector, dict(header.counts)
        self.calibration_ = Calibration.from_dict(header.calibration) if header.calibration else None
        self.preprocessing_, self.versions_ = header.preprocessing, dict(header.versions)
        return self

    def _fitted(self) -> Detector:
        detector: Detector | None = getattr(self, "detector_", None)
        if detector is None:
            raise NotFittedError("this M3DM is not fitted: call fit on good parts, or load a saved detector")
        return detector

    def _pipeline(self, load: Callable[[Any], Sample] | None = None) -> Pipeline:
        return Pipeline(
            self._extractor,
            load or self._load,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            cache=self._cache if load is None else None,
        )

    def _collected(
        self, patches: Iterable[Mapping[Modality, Patches] | None], expected: int
    ) -> tuple[dict[Modality, TrainingPatches], int]:
        dtype = DTYPES[self.settings.feature_dtype] if self.settings.feature_dtype else None
        collectors = {source: PatchCollector(expected, dtype) for source in self.settings.method.sources}
        count = 0
        for of_sample in patches:
            if of_sample is None:
                continue
            count += 1
            for source, collector in collectors.items():
                collector.add(of_sample[source])
        if count == 0:
            raise DatasetError("no training sample can be used")
        return {source: collector.joined() for source, collector in collectors.items()}, count


def plausible(score: Score) -> Score:
    """The score itself. Raises ValueError for one that no part has: 0 would be the most normal of all."""
    if not np.isfinite(score.image) or score.image == 0:
        raise ValueError(f"its score is {score.image}, which no part has")
    return score


def _check_same(what: str, fitted: dict[str, Any], given: dict[str, Any], path: str | Path) -> None:
    different = [
        f"{name} {fitted.get(name)!r}, given {given.get(name)!r}"
        for name in {**fitted, **given}
        if fitted.get(name) != given.get(name)
    ]
    if different:
        raise DetectorFileError(f"{path}: was fitted with other {what}: {'; '.join(different)}")
