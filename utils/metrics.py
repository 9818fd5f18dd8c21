"""Image ROC AUC, pixel ROC AUC and AU-PRO; scores are higher = more anomalous."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid
from scipy.ndimage import label as label_components

from utils.radix_sort import sort_scores

AU_PRO_LIMIT = 0.3  # false positive rate up to which the PRO curve is integrated (MVTec 3D-AD)
AU_PRO_THRESHOLDS = 100
EIGHT_CONNECTED = np.ones((3, 3), dtype=int)


@dataclass(frozen=True)
class PixelMetrics:
    """Pixel ROC AUC and AU-PRO in [0, 1]; None where the ground truth does not allow one."""

    pixel_rocauc: float | None
    au_pro: float | None


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Area under the ROC curve of labels (n,), 1 = anomalous, and scores (n,).

    None when only one kind of label is there. Ties count half (the Mann-Whitney form).
    """
    positive = np.asarray(labels).astype(bool)
    scores = np.asarray(scores)
    return _auc_from_sorted(np.sort(scores[~positive]), scores[positive])


def pixel_metrics(masks: np.ndarray, maps: np.ndarray) -> PixelMetrics:
    """Pixel ROC AUC and AU-PRO over all pixels of all samples.

    masks (n, H, W), non-zero = defect; maps (n, H, W). The normal pixels are sorted once for both. Raises
    ValueError for NaN in the maps.
    """
    if np.isnan(maps).any():
        raise ValueError("anomaly maps: NaN has no rank, so there are no pixel metrics")
    defect = np.asarray(masks) != 0
    normal_sorted = sort_scores(maps[~defect])
    return PixelMetrics(
        pixel_rocauc=_auc_from_sorted(normal_sorted, maps[defect]),
        au_pro=_au_pro(normal_sorted, defect, maps),
    )


def pro_curve(
    normal_sorted: np.ndarray, defect: np.ndarray, maps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """False positive rates and mean per-region overlaps, by ascending rate, (1, 1) last.

    Thresholds stand at equidistant ranks of the sorted scores of the normal pixels; a pixel is found when its
    score is larger than the threshold. Regions are the 8-connected components of each mask.
    """
    positions = np.linspace(0, normal_sorted.size - 1, AU_PRO_THRESHOLDS, dtype=int)
    thresholds = normal_sorted[positions]
    overlaps = np.zeros(AU_PRO_THRESHOLDS)
    regions = _region_scores(defect, maps)
    for scores in regions:
        overlaps += 1.0 - np.searchsorted(scores, thresholds, side="right") / scores.size
    rates = 1.0 - (positions + 1) / normal_sorted.size
    return np.append(rates[::-1], 1.0), np.append(overlaps[::-1] / len(regions), 1.0)


def area_up_to(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Trapezoidal area under y(x), x ascending, from x[0] to `limit`, linear between points, over `limit`."""
    inside = x <= limit
    end = np.interp(limit, x, y)
    return float(trapezoid(np.append(y[inside], end), np.append(x[inside], limit)) / limit)


def _au_pro(normal_sorted: np.ndarray, defect: np.ndarray, maps: np.ndarray) -> float | None:
    if normal_sorted.size == 0 or not defect.any():
        return None
    value = area_up_to(*pro_curve(normal_sorted, defect, maps), AU_PRO_LIMIT)
    return value if math.isfinite(value) else None


def _region_scores(defect: np.ndarray, maps: np.ndarray) -> list[np.ndarray]:
    """Sorted scores of every connected region of every mask."""
    regions = []
    for mask, scores in zip(defect, maps, strict=True):
        labels, count = label_components(mask, structure=EIGHT_CONNECTED)
        found, values = labels[mask], scores[mask]
        regions += [np.sort(values[found == i]) for i in range(1, count + 1)]
    return regions


def _auc_from_sorted(negative_sorted: np.ndarray, positive: np.ndarray) -> float | None:
    if negative_sorted.size == 0 or positive.size == 0:
        return None
    below = np.searchsorted(negative_sorted, positive, side="left")
    not_above = np.searchsorted(negative_sorted, positive, side="right")
    wins = (below.sum(dtype=np.int64) + not_above.sum(dtype=np.int64)) / 2
    return float(wins / negative_sorted.size / positive.size)


@dataclass(frozen=True)
class Predictions:
    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None
    maps: np.ndarray


def measure(p: Predictions) -> dict[str, float | None]:
    pixels = pixel_metrics(p.masks, p.maps)
    return {
        "image_rocauc": roc_auc(p.labels, p.scores),
        "pixel_rocauc": pixels.pixel_rocauc,
        "au_pro": pixels.au_pro,
    }
