"""From the banks' scores to one: their sum, or decision layer fusion (DLF) by one-class SVMs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sklearn.linear_model import SGDOneClassSVM

from feature_extractors.settings import Settings
from utils.structures import Score

SVM_SEED = 42  # of the released code


class Decision(Protocol):
    """Turns the banks' scores of one sample, in column order, into one; higher = more anomalous."""

    def decide(self, scores: list[Score]) -> Score: ...


@dataclass(frozen=True)
class SumDecision:
    """Adds the banks' image scores and maps; with one bank this is the bank's own score."""

    def decide(self, scores: list[Score]) -> Score:
        total_map = np.sum([score.map for score in scores], axis=0)
        return Score(float(sum(score.image for score in scores)), total_map)


@dataclass(frozen=True)
class LinearScore:
    """<w, s> of a linear one-class SVM: coef (K,) float64; its offset, subtracted and added again as released."""

    coef: np.ndarray
    offset: float

    def of(self, rows: np.ndarray) -> np.ndarray:
        """(n, K) float64 -> (n,)."""
        return (rows @ self.coef[:, None] - self.offset).ravel() + self.offset


@dataclass(frozen=True)
class OneClassDecision:
    """DLF: a linear one-class SVM over the banks' image scores, and one over their pixels.

    The decision is the weighted sum <w, s> before the offset, so larger = more anomalous (M3DM, section 3.3).
    Each column is multiplied by its factor first, (K,) float32 each. Scores and maps are float32, as released; the
    SVMs work in float64, as there: in float32 the stochastic gradient stops elsewhere, and the coefficients
    differ by up to a fifth.
    """

    score_factors: np.ndarray
    map_factors: np.ndarray
    image: LinearScore
    pixel: LinearScore

    def decide(self, scores: list[Score]) -> Score:
        image = self.image.of(image_row(scores, self.score_factors))
        pixels = self.pixel.of(pixel_rows(scores, self.map_factors))
        return Score(float(image[0]), pixels.astype(np.float32).reshape(scores[0].map.shape))


def fit_one_class_decision(training: list[list[Score]], settings: Settings) -> OneClassDecision:
    """Fit DLF on the training samples' scores, K banks each.

    Raises ValueError when they are all zero, as where the banks hold every training row: the SVMs would
    call everything normal.
    """
    banks = settings.method.banks
    score_factors = np.array([bank.score_factor for bank in banks], dtype=np.float32)
    map_factors = np.array([bank.map_factor for bank in banks], dtype=np.float32)
    images = np.concatenate([image_row(scores, score_factors) for scores in training])  # (n, K)
    pixels = np.concatenate([pixel_rows(scores, map_factors) for scores in training])  # (n * S * S, K)
    if not (images.any() and pixels.any()):
        raise ValueError(
            "the training samples are at distance 0 from the banks, so the one-class SVMs have nothing to "
            "learn from; use a smaller --f_coreset, or --method_name DINO+Point_MAE+add"
        )
    image, pixel = (_fit_linear(rows, settings) for rows in (images, pixels))
    return OneClassDecision(score_factors, map_factors, image, pixel)


def image_row(scores: list[Score], factors: np.ndarray) -> np.ndarray:
    """The banks' image scores times their factors, (1, K) float64."""
    row = np.array([[score.image for score in scores]], dtype=np.float32)
    return (row * factors).astype(np.float64)


def pixel_rows(scores: list[Score], factors: np.ndarray) -> np.ndarray:
    """The banks' maps times their factors, (S * S, K) float64."""
    columns = [score.map.ravel() for score in scores]
    rows = np.stack(columns, axis=1).astype(np.float32)
    return (rows * factors).astype(np.float64)


def _fit_linear(rows: np.ndarray, settings: Settings) -> LinearScore:
    svm = SGDOneClassSVM(random_state=SVM_SEED, nu=settings.ocsvm_nu, max_iter=settings.ocsvm_maxiter)
    svm.fit(rows)
    return LinearScore(svm.coef_.ravel(), float(svm.offset_[0]))
