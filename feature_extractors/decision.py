"""From the banks' scores to one: their sum, or decision layer fusion (DLF) by one-class SVMs."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import SGDOneClassSVM

from feature_extractors.settings import Lambdas, Settings
from utils.structures import Score

SVM_SEED = 42  # of the released code


class SumDecision:
    """Adds the banks' image scores and maps; with one bank this is the bank's own score."""

    needs_training_scores = False

    def decide(self, scores: list[Score]) -> Score:
        total_map = np.sum([score.map for score in scores], axis=0)
        return Score(float(sum(score.image for score in scores)), total_map)


class OneClassDecision:
    """DLF: a linear one-class SVM over the banks' image scores, and one over their pixels.

    The decision is the weighted sum <w, s> before the offset, so larger = more anomalous (M3DM, section 3.3).
    Scores and maps are float32, as released; the SVMs work in float64, as there: in float32 the stochastic
    gradient stops elsewhere, and the coefficients differ by up to a fifth.
    """

    needs_training_scores = True

    def __init__(self, banks: tuple[str, ...], lambdas: Lambdas, nu: float, max_iter: int) -> None:
        self._score_factors = np.array([lambdas.score[name] for name in banks], dtype=np.float32)
        self._map_factors = np.array([lambdas.map[name] for name in banks], dtype=np.float32)
        self.image_svm = SGDOneClassSVM(random_state=SVM_SEED, nu=nu, max_iter=max_iter)
        self.pixel_svm = SGDOneClassSVM(random_state=SVM_SEED, nu=nu, max_iter=max_iter)

    def fit(self, training: list[list[Score]]) -> OneClassDecision:
        """Fit on the training samples' scores, K banks each.

        Raises ValueError when they are all zero, as where the banks hold every training row: the SVMs would
        call everything normal.
        """
        images = np.concatenate([self._image_row(scores) for scores in training])  # (n, K)
        pixels = np.concatenate([self._pixel_rows(scores) for scores in training])  # (n * S * S, K)
        if not (images.any() and pixels.any()):
            raise ValueError(
                "the training samples are at distance 0 from the banks, so the one-class SVMs have nothing to "
                "learn from; use a smaller --f_coreset, or --method_name DINO+Point_MAE+add"
            )
        self.image_svm.fit(images)
        self.pixel_svm.fit(pixels)
        return self

    def decide(self, scores: list[Score]) -> Score:
        image = self.image_svm.score_samples(self._image_row(scores))
        pixels = self.pixel_svm.score_samples(self._pixel_rows(scores))
        return Score(float(image[0]), pixels.astype(np.float32).reshape(scores[0].map.shape))

    def _image_row(self, scores: list[Score]) -> np.ndarray:
        row = np.array([[score.image for score in scores]], dtype=np.float32)
        return (row * self._score_factors).astype(np.float64)

    def _pixel_rows(self, scores: list[Score]) -> np.ndarray:
        columns = [score.map.ravel() for score in scores]
        rows = np.stack(columns, axis=1).astype(np.float32)  # (S * S, K)
        return (rows * self._map_factors).astype(np.float64)


def make_decision(settings: Settings) -> SumDecision | OneClassDecision:
    """The decision of the method's row."""
    spec = settings.method
    if spec.decision == "sum":
        return SumDecision()
    return OneClassDecision(spec.banks, settings.lambdas, settings.ocsvm_nu, settings.ocsvm_maxiter)
