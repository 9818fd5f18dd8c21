"""Pixel ROC AUC and AU-PRO step by step, as the released code computes them; the twin of utils.metrics."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

THRESHOLDS = 100
FPR_LIMIT = 0.3


def plain_pixel_metrics(masks: np.ndarray, maps: np.ndarray) -> tuple[float, float]:
    """Pixel ROC AUC and AU-PRO of masks and maps (n, H, W): all pixels in Python lists, then region by region."""
    truth: list[int] = []
    scores: list[float] = []
    for mask, pixels in zip(masks, maps, strict=True):
        truth.extend(mask.ravel().astype(int))
        scores.extend(pixels.ravel())
    auroc = float(roc_auc_score(np.array(truth), np.array(scores)))
    return auroc, _area(*plain_pro_curve(masks, maps))


def plain_pro_curve(masks: np.ndarray, maps: np.ndarray) -> tuple[list[float], list[float]]:
    """False positive rates, ascending, and the regions' mean overlap at each."""
    normal = []
    regions: list[list[float]] = []
    for mask, pixels in zip(masks, maps, strict=True):
        labels, count = label(mask, structure=np.ones((3, 3)))
        normal.append(pixels[labels == 0])
        regions += [sorted(pixels[labels == number]) for number in range(1, count + 1)]
    ranked = np.sort(np.concatenate(normal))
    passed = [0] * len(regions)  # pixels of each region at or below the threshold
    rates, overlaps = [1.0], [1.0]
    for position in np.linspace(0, len(ranked) - 1, THRESHOLDS, dtype=int):
        for number, region in enumerate(regions):
            while passed[number] < len(region) and region[passed[number]] <= ranked[position]:
                passed[number] += 1
        found = [1 - count / len(region) for count, region in zip(passed, regions, strict=True)]
        rates.append(1 - (position + 1) / len(ranked))
        overlaps.append(sum(found) / len(found))
    return rates[::-1], overlaps[::-1]


def _area(rates: list[float], overlaps: list[float]) -> float:
    """Area under the curve up to the limit, over the limit: trapezoids, cut linearly."""
    area = 0.0
    for x0, x1, y0, y1 in zip(rates, rates[1:], overlaps, overlaps[1:], strict=False):
        if x0 < FPR_LIMIT:
            end = min(x1, FPR_LIMIT)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0) if x1 > x0 else y1
            area += (end - x0) * (y0 + y_end) / 2
    return area / FPR_LIMIT
