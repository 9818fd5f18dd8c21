"""The test samples of a class, scored, beside their ground truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dataset import DatasetError, resized_mask
from m3dm_runner import M3DM
from utils.metrics import Predictions
from utils.report.figures import ClassFigures, collect
from utils.structures import SampleFiles, Score, Thresholds

Scores = Iterator[Score | None]


@dataclass(frozen=True)
class EvaluatedClass:
    """The test samples of a class that could be scored, in order, with their scores; maps (n, S, S).

    predictions: those of the samples whose label is known, beside their ground truth; thresholds: where the model has
    been calibrated.
    """

    files: list[SampleFiles]
    scores: np.ndarray
    maps: np.ndarray
    predictions: Predictions
    thresholds: Thresholds | None = None

    def rows(self) -> list[tuple[str, int | None, float]]:
        """Path, label and score of each sample; label None where it is not known."""
        scores = self.scores.tolist()
        return [(files.path, files.label, score) for files, score in zip(self.files, scores, strict=True)]

    def figures(self) -> ClassFigures:
        """What the report shows of the class. Raises SampleFileError."""
        return collect(self.files, self.scores, self.maps, self.predictions, self.thresholds)


def evaluate(
    model: M3DM, samples: Sequence[SampleFiles], title: str = "test", scores: Scores | None = None
) -> EvaluatedClass:
    """Score test samples and put their ground truth beside the scores.

    scores: those of the samples, in order, None for one that can't be used (default: those of `model.predict_all`).
    Samples that can't be used are left out, and the model's observer is told. Raises DatasetError when none is left.
    """
    with model.observer.stage("predict"):
        return _beside_truth(model, samples, scores or model.predict_all(samples, title))


def _beside_truth(model: M3DM, samples: Sequence[SampleFiles], scores: Scores) -> EvaluatedClass:
    kept: list[SampleFiles] = []
    found: list[Score] = []
    masks: list[np.ndarray | None] = []
    for files, score in zip(samples, scores, strict=True):
        if score is None:
            continue
        try:
            mask = resized_mask(files, model.settings.img_size)
        except ValueError as error:
            model.observer.left_out(files.path, str(error))
            continue
        kept.append(files)
        found.append(score)
        masks.append(mask)
    if not kept:
        raise DatasetError("no test sample can be used")
    images, maps = np.array([score.image for score in found]), np.stack([score.map for score in found])
    thresholds = model.calibration_.thresholds if model.calibration_ else None
    return EvaluatedClass(kept, images, maps, _predictions(kept, images, maps, masks), thresholds)


def _predictions(
    files: list[SampleFiles], scores: np.ndarray, maps: np.ndarray, masks: list[np.ndarray | None]
) -> Predictions:
    """Those of the samples whose label is known; without pixel truth where one of them has none."""
    known = [i for i, of_sample in enumerate(files) if of_sample.label is not None]
    found = [mask for i in known if (mask := masks[i]) is not None]
    return Predictions(
        labels=np.array([files[i].label for i in known], dtype=int),
        scores=scores[known],
        masks=np.array(found, dtype=bool).reshape(maps[known].shape) if len(found) == len(known) else None,
        maps=maps[known],
    )
