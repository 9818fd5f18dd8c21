"""What is measured of a class's predictions, as a table with a row a metric; scores are higher = more anomalous."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from scipy.integrate import trapezoid
from scipy.ndimage import label as label_components

AU_PRO_LIMIT = 0.3  # false positive rate up to which the PRO curve is integrated (MVTec 3D-AD)
AU_PRO_THRESHOLDS = 100
EIGHT_CONNECTED = np.ones((3, 3), dtype=int)


class Curve(NamedTuple):
    """False positive rates x (k,), ascending, and y (k,) at each."""

    x: np.ndarray
    y: np.ndarray


class Ranking(NamedTuple):
    """Where the positives stand among the negatives: four counts (k,) int64, by descending score of a positive.

    A threshold finds what is not below it. Between the k distinct scores of positives only negatives come and go,
    so that most metrics need no other threshold.
    """

    found: np.ndarray  # positives not below the score
    alarms: np.ndarray  # negatives not below it
    higher_found: np.ndarray  # positives above it
    higher_alarms: np.ndarray  # negatives above it
    negatives: int


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores of n test samples beside their ground truth; what several metrics need is computed once, when needed.

    labels (n,), non-zero = anomalous; scores (n,); masks (n, H, W) bool, True = defect, or None without pixel ground
    truth; maps (n, H, W) float32. Raises ValueError where these do not fit together, and for NaN once it is ranked.
    """

    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None
    maps: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.labels.shape != (count,) or self.scores.shape != (count,) or len(self.maps) != count:
            shapes = self.labels.shape, self.scores.shape, self.maps.shape
            raise ValueError(f"labels, scores, maps: shapes {shapes}; they must be (n,), (n,), (n, H, W)")
        if self.masks is not None and (self.masks.shape != self.maps.shape or self.masks.dtype != bool):
            found = f"{self.masks.dtype} {self.masks.shape}"
            raise ValueError(f"masks: {found}; they must be bool and of the maps' shape {self.maps.shape}")

    @cached_property
    def image_ranking(self) -> Ranking | None:
        """The anomalous samples among the others; None when only one kind is there."""
        anomalous = self.labels.astype(bool)
        scores = [_sorted(self.scores[kind], "image scores") for kind in (anomalous, ~anomalous)]
        return rank(*scores)

    @cached_property
    def pixel_ranking(self) -> Ranking | None:
        """The defects' pixels among the others; None without pixel ground truth and when one kind is missing."""
        if self.masks is None:
            return None
        return rank(_sorted(self.maps[self.masks], "anomaly maps"), self.normal_sorted)

    @cached_property
    def normal_sorted(self) -> np.ndarray:
        """Scores of all normal pixels, ascending."""
        return _sorted(self.maps if self.masks is None else self.maps[~self.masks], "anomaly maps")

    @cached_property
    def regions(self) -> list[np.ndarray]:
        """Scores, ascending, of each defect: an 8-connected component of a mask; [] without pixel ground truth."""
        if self.masks is None:
            return []
        regions = []
        for mask, scores in zip(self.masks, self.maps, strict=True):
            components, count = label_components(mask, structure=EIGHT_CONNECTED)
            number, values = components[mask], scores[mask]
            regions += [_sorted(values[number == i], "anomaly maps") for i in range(1, count + 1)]
        return regions

    @cached_property
    def exact_pro_curve(self) -> Curve | None:
        """PRO at all distinct scores; None where `pixel_ranking` is."""
        return None if self.pixel_ranking is None else exact_pro_curve(self.pixel_ranking, self.regions)


def rank(positive: np.ndarray, negative: np.ndarray) -> Ranking | None:
    """Ranking of two arrays in ascending order; None when one is empty."""
    if positive.size == 0 or negative.size == 0:
        return None
    starts = _runs(positive)
    score = positive[starts]
    return Ranking(
        found=(positive.size - starts)[::-1],
        alarms=(negative.size - np.searchsorted(negative, score, side="left"))[::-1],
        higher_found=(positive.size - np.append(starts[1:], positive.size))[::-1],
        higher_alarms=(negative.size - np.searchsorted(negative, score, side="right"))[::-1],
        negatives=negative.size,
    )


def roc_auc(ranking: Ranking | None) -> float | None:
    """Area under the ROC curve; ties count half (the Mann-Whitney form)."""
    if ranking is None:
        return None
    here = ranking.found - ranking.higher_found
    lost = (here * (ranking.alarms + ranking.higher_alarms)).sum(dtype=np.int64)
    positives = int(ranking.found[-1])
    wins = (2 * positives * ranking.negatives - int(lost)) / 2
    return float(wins / ranking.negatives / positives)


def roc_curve(ranking: Ranking) -> Curve:
    """The ROC curve from (0, 0) to (1, 1); oblique where positives and negatives have the same score."""
    rates = np.stack([ranking.higher_alarms, ranking.alarms], axis=1).ravel() / ranking.negatives
    found = np.stack([ranking.higher_found, ranking.found], axis=1).ravel() / ranking.found[-1]
    return Curve(np.concatenate([[0.0], rates, [1.0]]), np.concatenate([[0.0], found, [1.0]]))


def average_precision(ranking: Ranking | None) -> float | None:
    """Mean over the positives of the precision at each one's score, as scikit-learn defines it."""
    if ranking is None:
        return None
    precision = ranking.found / (ranking.found + ranking.alarms)
    return float((ranking.found - ranking.higher_found) @ precision / ranking.found[-1])


def f1_max(ranking: Ranking | None) -> float | None:
    """The largest F1 of any threshold."""
    if ranking is None:
        return None
    return float((2 * ranking.found / (ranking.found + ranking.alarms + ranking.found[-1])).max())


def au_pro(predictions: Predictions) -> float | None:
    """Area under the PRO curve of 100 thresholds up to a false positive rate of 0.3, as published."""
    if not predictions.regions or predictions.normal_sorted.size == 0:
        return None
    return area_up_to(pro_curve(predictions.normal_sorted, predictions.regions), AU_PRO_LIMIT)


def au_pro_exact(predictions: Predictions, limit: float) -> float | None:
    """Area under the PRO curve of all thresholds up to a false positive rate, as MVTec's evaluation computes it."""
    curve = predictions.exact_pro_curve
    return None if curve is None else area_up_to(curve, limit)


def pro_curve(normal_sorted: np.ndarray, regions: list[np.ndarray]) -> Curve:
    """False positive rates and mean overlaps of one or more regions, (1, 1) last.

    Thresholds stand at equidistant ranks of the sorted scores of the normal pixels; a pixel is found when its
    score is larger than the threshold.
    """
    positions = np.linspace(0, normal_sorted.size - 1, AU_PRO_THRESHOLDS, dtype=int)
    thresholds = normal_sorted[positions]
    overlaps = np.zeros(AU_PRO_THRESHOLDS)
    for scores in regions:
        overlaps += 1.0 - np.searchsorted(scores, thresholds, side="right") / scores.size
    rates = 1.0 - (positions + 1) / normal_sorted.size
    return Curve(np.append(rates[::-1], 1.0), np.append(overlaps[::-1] / len(regions), 1.0))


def exact_pro_curve(ranking: Ranking, regions: list[np.ndarray]) -> Curve:
    """The PRO curve of all distinct scores, from (0, 0) to (1, 1).

    The mean overlap only changes at scores of the regions' pixels. Each makes two corners, above it and at it;
    where normal pixels have the same score the curve is oblique between them.
    """
    scores = np.concatenate(regions)
    shares = np.concatenate([np.full(len(region), 1 / (len(region) * len(regions))) for region in regions])
    order = np.argsort(scores)
    steps = np.add.reduceat(shares[order], _runs(scores[order]))[::-1]  # at each distinct score, descending
    overlaps = np.append(0.0, np.cumsum(steps))
    overlaps[-1] = 1.0  # but for rounding
    rates = np.stack([ranking.higher_alarms, ranking.alarms], axis=1).ravel() / ranking.negatives
    corners = np.stack([overlaps[:-1], overlaps[1:]], axis=1).ravel()
    return Curve(np.concatenate([[0.0], rates, [1.0]]), np.concatenate([[0.0], corners, [1.0]]))


def area_up_to(curve: Curve, limit: float) -> float:
    """Trapezoidal area under the curve from x[0] to `limit`, linear between points, over `limit`."""
    inside = curve.x <= limit
    end = np.interp(limit, curve.x, curve.y)
    return float(trapezoid(np.append(curve.y[inside], end), np.append(curve.x[inside], limit)) / limit)


def _sorted(scores: np.ndarray, name: str) -> np.ndarray:
    """All scores, ascending. Raises ValueError for NaN, which NumPy sorts to the end."""
    ascending = np.sort(scores, axis=None)
    if ascending.size and np.isnan(ascending[-1]):
        raise ValueError(f"{name}: NaN has no rank, so there are no metrics")
    return ascending


def _runs(ascending: np.ndarray) -> np.ndarray:
    """Where each distinct value of a sorted array (n,), n >= 1, begins."""
    return np.append(0, np.flatnonzero(ascending[1:] != ascending[:-1]) + 1)


@dataclass(frozen=True)
class Metric:
    """A row: key in results.json, title, file of the table that `main.py` appends to (None: no table), function.

    The function gives a value in [0, 1], or None where the ground truth does not allow one.
    """

    key: str
    title: str
    table_file: str | None
    function: Callable[[Predictions], float | None]


METRICS = (
    Metric("image_rocauc", "Image ROCAUC", "image_rocauc_results.md", lambda p: roc_auc(p.image_ranking)),
    Metric("pixel_rocauc", "Pixel ROCAUC", "pixel_rocauc_results.md", lambda p: roc_auc(p.pixel_ranking)),
    Metric("au_pro", "AU PRO", "aupro_results.md", au_pro),
    Metric("au_pro_exact_30", "AU PRO 30 %, exact", None, partial(au_pro_exact, limit=0.3)),
    Metric("au_pro_exact_10", "AU PRO 10 %, exact", None, partial(au_pro_exact, limit=0.1)),
    Metric("au_pro_exact_05", "AU PRO 5 %, exact", None, partial(au_pro_exact, limit=0.05)),
    Metric("au_pro_exact_01", "AU PRO 1 %, exact", None, partial(au_pro_exact, limit=0.01)),
    Metric("image_ap", "Image AP", None, lambda p: average_precision(p.image_ranking)),
    Metric("image_f1_max", "Image F1-max", None, lambda p: f1_max(p.image_ranking)),
    Metric("pixel_ap", "Pixel AP", None, lambda p: average_precision(p.pixel_ranking)),
    Metric("pixel_f1_max", "Pixel F1-max", None, lambda p: f1_max(p.pixel_ranking)),
)


def measure(predictions: Predictions) -> dict[str, float | None]:
    """Every metric of the table, by its key. Raises ValueError for NaN among the scores or maps."""
    return {metric.key: metric.function(predictions) for metric in METRICS}


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean of a metric over classes or seeds; None where it is None of one: over fewer it is another figure."""
    found = list(values)
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if found and len(known) == len(found) else None
